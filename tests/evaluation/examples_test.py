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


LETTERS = 2 * examples._LETTER


def test_picture():
  cell, band = examples._CELL, examples._BAND
  pixels = examples.draw(rows(), 4)
  width = examples._MARGIN + 128 * cell
  assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (width, 3))
  color = dict(zip((4, 5, 6, 7), examples.colors([4, 5, 6, 7]), strict=True))
  assert len({tuple(x) for x in color.values()}) == 4
  white = np.full(3, 255, np.uint8)
  line = pixels[examples._LEGEND + examples._GAP :, examples._MARGIN :]

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
  curve = line[2 * band + LETTERS :, cell // 2 :: cell]
  height = np.sum(np.any(curve != 255, axis=2), axis=0)[:7]
  # The highest bar is 4 bits; entropies on padding are ignored.
  assert height.tolist() == [7, 21, 0, 28, 14, 0, 0]
  # Letters, and below them those that are decoded wrong, in red on pale red.
  for row, inked in ((0, [True] * 5), (1, [False] * 3 + [True, False])):
    y = 2 * band + row * examples._LETTER
    cells = line[y : y + examples._LETTER, : 7 * cell].reshape(-1, 7, cell, 3)
    has_ink = np.min(cells, axis=(0, 2)).min(axis=-1) < 200
    assert has_ink.tolist() == [*inked, False, False]
  pale = [
    x == list(examples._PALE_RED)
    for x in line[2 * band + examples._LETTER, ::cell].tolist()
  ]
  assert pale[:7] == [False, False, False, True, False, False, False]
  assert not any(pale[7:])


def test_a_picture_has_a_legend_and_axes():
  pixels = examples.draw(rows(), 4)
  gap, legend = examples._GAP, examples._LEGEND
  is_inked = pixels.min(axis=-1) < 200
  assert is_inked[:legend, examples._MARGIN :].any()
  # A number above each 16th id that there is, and a name beside each band.
  axis = is_inked[legend : legend + gap, examples._MARGIN :]
  assert axis[:, :20].any()
  assert not axis[:, 20:].any()
  names = is_inked[legend + gap :, : examples._MARGIN]
  y = np.cumsum([0, *[examples._BAND] * 2, *[examples._LETTER] * 2])
  for top, bottom in zip(y, [*y[1:], None], strict=True):
    assert names[top:bottom].any()


def test_letters():
  ids_S = np.array([97, 32, 10, 0xC3, EOS_ID, -1, 98])
  shown = examples._letters(ids_S, np.arange(7) < 6)
  assert '|'.join(shown) == 'a| |\u00b7|\u00b7|\u00b7|\u00d7|'


def test_long_rows_make_a_picture_of_bounded_size():
  size = 128 * 40
  zeros = np.zeros(size, int)
  one = level(zeros, zeros, zeros, zeros)
  origin_BP = np.zeros((1, 1), int)
  none = DecodedRows(
    origin_BP[..., None], origin_BP, CodeRows(None, None, None, origin_BP)
  )
  long = CodedRows(zeros[None], (one,), (), None, none)
  line = examples._GAP + examples._BAND + examples._CURVE + LETTERS
  assert len(examples.draw(long, 4)) == examples._LEGEND + 16 * line
