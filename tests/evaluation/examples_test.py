"""What is shown of rows, on rows whose every id is known."""

import numpy as np

from abstractinator.config import ModelConfig
from abstractinator.evaluation import distributions, examples
from abstractinator.evaluation.coded_rows import CodedLevel
from abstractinator.model.pyramid import DecodedRows
from abstractinator.ops.code_rows import CodeRows
from abstractinator.types import EOS_ID, PAD_ID
from tests.helpers import tiny_pyramid


def level(index_S, bits_S, codes_U):
  index_BS = np.array([index_S])
  return CodedLevel(
    index_BS=index_BS,
    entropy_bits_BS=np.array([bits_S], np.float32),
    bits_BS=None,
    is_short_BS=None,
    codes_BU=np.array([codes_U]),
    is_code_BU=None,
  )


# 'ab', 'c|' and EOS, padding; then the codes 4, 7, 4 in two segments.
LEVELS = (
  level([0, 0, 1, 1, 2, -1], [1, 3, 0, 4, 2, 99], [4, 7, 4, 0]),
  level([0, 0, 1, -1], [1, 2, 0.5, 99], [5, 6]),
)
DECODED_PL = np.array([[97, 98], [99, 100], [EOS_ID, 0], [0, 0]])


def rows():
  origin_BP = np.array([[0, 0, 1, 0]])
  code_rows = CodeRows(None, None, None, origin_BP)
  ids = [97, 98, 99, 124, EOS_ID, PAD_ID]
  return examples.ExampleRows(
    np.array([ids]),
    LEVELS,
    DecodedRows(DECODED_PL[None], np.array([[2, 2, 1, 0]]), code_rows),
  )


def test_markdown():
  assert examples.markdown(rows(), 4) == (
    'text\n\n    ab|c||\n\nfrom codes\n\n    ab|cd|'
  )


def test_picture():
  cell, band = examples._CELL, examples._BAND
  pixels = examples.draw(rows(), (1, 1), 4)
  assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (128 * cell, 3))
  colour = dict(zip((4, 5, 6, 7), examples.colours([4, 5, 6, 7]), strict=True))
  assert len({tuple(x) for x in colour.values()}) == 4
  white = np.full(3, 255, np.uint8)
  line = pixels[examples._GAP :]

  def middles(y):
    """Of the first seven cells."""
    return line[y, cell // 2 : 7 * cell : cell].tolist()

  def colours(*codes):
    wanted = [white if code is None else colour[code] for code in codes]
    return [x.tolist() for x in wanted]

  assert middles(band // 2) == colours(5, 5, 5, 5, 6, None, None)
  assert middles(band + band // 2) == colours(4, 4, 7, 7, 4, None, None)
  # Segments are apart, ids of one are not.
  assert line[band + 1, [0, 2 * cell]].tolist() == [white.tolist()] * 2
  assert line[band + 1, cell].tolist() == colour[4].tolist()
  curve = line[2 * band : 2 * band + examples._CURVE, cell // 2 :: cell]
  height = np.sum(np.any(curve != 255, axis=2), axis=0)[:7]
  # The highest is 4 bits; what stands on padding counts for nothing.
  assert height.tolist() == [7, 21, 0, 28, 14, 0, 0]
  wrong = [x == list(examples._RED) for x in middles(-1)]
  assert wrong == [False, False, False, True, False, False, False]


def test_long_rows_make_a_picture_of_bounded_size():
  size = 128 * 40
  one = level(np.zeros(size, int), np.zeros(size), np.zeros(size, int))
  origin_BP = np.zeros((1, 1), int)
  none = DecodedRows(
    origin_BP[..., None], origin_BP, CodeRows(None, None, None, origin_BP)
  )
  long = examples.ExampleRows(np.zeros((1, size), int), (one,), none)
  line = examples._GAP + examples._BAND + examples._CURVE + examples._ERRORS
  assert len(examples.draw(long, (1,), 4)) == 16 * line


def test_distributions():
  config: ModelConfig = tiny_pyramid.make_config({}, {}, top_lm=None)
  found = distributions.Distributions(config.levels)
  found.add(LEVELS)
  found.add(LEVELS)
  histograms = found.histograms().flattened()
  assert list(histograms) == [
    'level0/entropy_bits',
    'level0/segment_length',
    'level1/entropy_bits',
    'level1/segment_length',
  ]
  counts, edges = histograms['level0/entropy_bits']
  assert (edges[0], edges[-1], counts.sum()) == (0, 4, 10)
  assert counts[[0, -1]].tolist() == [2, 2]
  lengths = histograms['level0/segment_length']
  assert lengths.edges is None
  assert lengths.counts.tolist() == [0, 2, 4, 0, 0, 0]
  assert histograms['level1/segment_length'].counts[:3].tolist() == [0, 2, 2]
