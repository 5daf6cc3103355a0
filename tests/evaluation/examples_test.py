"""Examples of rows whose every id is known."""

import numpy as np

from abstractinator.evaluation import examples
from abstractinator.evaluation.coded_rows import CodedLevel, CodedRows
from abstractinator.model.pyramid import DecodedRows
from abstractinator.ops.code_rows import CodeRows
from abstractinator.types import EOS_ID, PAD_ID


def level(index_S, slot_S, bits_S, codes_U):
  return CodedLevel(
    index_BS=np.array([index_S]),
    entropy_bits_BS=np.array([bits_S], np.float32),
    bits_BS=None,
    is_short_BS=None,
    codes_BU=np.array([codes_U]),
    is_code_BU=None,
    byte_slot_BS=np.array([slot_S]),
    num_queries=1,
  )


# 'ab', 'c|' and EOS, padding; then the codes 4, 7, 4 in two segments.
BYTES = [0, 0, 1, 1, 2, -1]
LEVELS = (
  level(BYTES, BYTES, [1, 3, 0, 4, 2, 99], [4, 7, 4, 0]),
  level([0, 0, 1, -1], [0, 0, 0, 0, 1, -1], [1, 2, 0.5, 99], [5, 6]),
)
DECODED_PL = np.array([[97, 98], [99, 100], [EOS_ID, 0], [0, 0]])


def rows():
  origin_BP = np.array([[0, 0, 1, 0]])
  code_rows = CodeRows(None, None, None, origin_BP)
  ids = [97, 98, 99, 124, EOS_ID, PAD_ID]
  decoded = DecodedRows(DECODED_PL[None], np.array([[2, 2, 1, 0]]), code_rows)
  return CodedRows(np.array([ids]), LEVELS, (), None, decoded)


def test_markdown():
  assert examples.markdown(rows(), 4) == (
    'text\n\n    ab|c||\n\nfrom codes\n\n    ab|cd|'
  )


def test_picture():
  cell, band = examples._CELL, examples._BAND
  pixels = examples.draw(rows(), 4)
  assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (128 * cell, 3))
  color = dict(zip((4, 5, 6, 7), examples.colors([4, 5, 6, 7]), strict=True))
  assert len({tuple(x) for x in color.values()}) == 4
  white = np.full(3, 255, np.uint8)
  line = pixels[examples._GAP :]

  def middles(y):
    """Returns the pixels in the middle of the first seven cells."""
    return line[y, cell // 2 : 7 * cell : cell].tolist()

  def colors(*codes):
    wanted = [white if code is None else color[code] for code in codes]
    return [x.tolist() for x in wanted]

  assert middles(band // 2) == colors(5, 5, 5, 5, 6, None, None)
  assert middles(band + band // 2) == colors(4, 4, 7, 7, 4, None, None)
  # A white line separates segments, but not the ids of one segment.
  assert line[band + 1, [0, 2 * cell]].tolist() == [white.tolist()] * 2
  assert line[band + 1, cell].tolist() == color[4].tolist()
  curve = line[2 * band : 2 * band + examples._CURVE, cell // 2 :: cell]
  height = np.sum(np.any(curve != 255, axis=2), axis=0)[:7]
  # The highest bar is 4 bits; entropies on padding are ignored.
  assert height.tolist() == [7, 21, 0, 28, 14, 0, 0]
  wrong = [x == list(examples._RED) for x in middles(-1)]
  assert wrong == [False, False, False, True, False, False, False]


def test_long_rows_make_a_picture_of_bounded_size():
  size = 128 * 40
  zeros = np.zeros(size, int)
  one = level(zeros, zeros, zeros, zeros)
  origin_BP = np.zeros((1, 1), int)
  none = DecodedRows(
    origin_BP[..., None], origin_BP, CodeRows(None, None, None, origin_BP)
  )
  long = CodedRows(zeros[None], (one,), (), None, none)
  line = examples._GAP + examples._BAND + examples._CURVE + examples._ERRORS
  assert len(examples.draw(long, 4)) == 16 * line
