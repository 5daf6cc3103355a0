"""Rows with their segments and the bytes decoded from their codes, to look at.

In pictures an id is a cell of `_CELL` pixels, and S cells make a row.
"""

import itertools

import numpy as np

from abstractinator import types
from abstractinator.evaluation.coded_rows import CodedRows
from abstractinator.evaluation.reconstruction import align, segments_of_rows
from abstractinator.model.pyramid import DecodedRows
from abstractinator.types import NUM_BYTES

# The first two count ids and lines; the others are pixels of a picture.
_IDS_A_LINE = 128
_MAX_LINES = 16
_CELL = 8
_BAND = 14
_CURVE = 28
_ERRORS = 4
_GAP = 12

_INK = (70, 84, 110)
_RED = (214, 40, 57)


def markdown(rows: CodedRows, num_rows: int) -> str:
  """Returns the first rows as Markdown, with a bar between segments.

  Each row, on the host, has its text, and below it the text that its codes
  alone decode to.
  """
  decoded = _decoded(rows)
  texts = []
  for ids_S, index_S, ids_PL, length_P in zip(
    rows.ids_BS[:num_rows],
    rows.levels[0].index_BS,
    decoded.ids_BPL,
    decoded.length_BP,
    strict=False,
  ):
    is_real_S = index_S >= 0
    cuts = 1 + np.flatnonzero(np.diff(index_S[is_real_S]))
    truth = np.split(ids_S[is_real_S], cuts)
    guess = [
      ids_L[:length]
      for ids_L, length in zip(ids_PL, length_P, strict=True)
      if length
    ]
    texts.append(f'text\n\n{_block(truth)}\n\nfrom codes\n\n{_block(guess)}')
  return '\n\n---\n\n'.join(texts)


def draw(rows: CodedRows, num_rows: int) -> np.ndarray:
  """Draws rows as a picture, 128 ids a line.

  A line has a band for each level, the top level first, in which each segment
  has the color of its first code. Below them are bars of the entropy by which
  the first level is cut, in proportion to the highest one in the batch; and in
  red the bytes that decoding from codes alone gets wrong.

  Args:
    rows: Decoded rows, on the host.
    num_rows: Number of rows to show, as far as 16 lines hold them.

  Returns:
    The picture, [height, width, 3] uint8.
  """
  decoded, first = _decoded(rows), rows.levels[0]
  entropy_BS = np.asarray(first.entropy_bits_BS)
  is_real_BS = np.asarray(first.byte_slot_BS) >= 0
  highest = max(float(entropy_BS[is_real_BS].max(initial=0.0)), 1e-6)
  top_BS = np.asarray(rows.levels[-1].byte_slot_BS)
  lines = []
  for row, segments in enumerate(
    itertools.islice(segments_of_rows(decoded), num_rows)
  ):
    ids_S, is_real_S = np.asarray(rows.ids_BS)[row], is_real_BS[row]
    beside_S, _ = align(*segments, top_BS[row])
    is_wrong_S = is_real_S & (ids_S < NUM_BYTES) & (beside_S != ids_S)
    bands = [
      _band(
        np.asarray(level.byte_slot_BS)[row],
        np.asarray(level.codes_BU)[row],
        level.num_queries,
      )
      for level in reversed(rows.levels)
    ]
    height_S = np.where(is_real_S, entropy_BS[row] / highest, 0.0)
    strip = np.concatenate(
      [*bands, _bars(height_S), _bars(is_wrong_S, _ERRORS, _RED)]
    )
    width = _IDS_A_LINE * _CELL
    for begin in range(0, int(is_real_S.sum()) * _CELL, width):
      part = strip[:, begin : begin + width]
      missing = width - part.shape[1]
      lines.append(
        np.pad(part, ((_GAP, 0), (0, missing), (0, 0)), constant_values=255)
      )
  return np.concatenate(lines[:_MAX_LINES])


def colors(codes: np.ndarray) -> np.ndarray:
  """Returns light colors of codes, unlike for near numbers, [..., 3] uint8."""
  # Steps of the golden ratio around the circle of hues are far apart.
  hue = np.asarray(codes, np.float64)[..., None] * 0.6180339887
  parts = np.abs(np.add(hue, [0, 2 / 3, 1 / 3]) % 1.0 * 6.0 - 3.0) - 1.0
  return (255 * (0.5 + 0.4 * np.clip(parts, 0.0, 1.0))).astype(np.uint8)


def _decoded(rows: CodedRows) -> DecodedRows:
  assert rows.decoded is not None, 'the rows were not decoded'
  return rows.decoded


def _band(
  slot_S: np.ndarray, codes_U: np.ndarray, num_queries: int
) -> np.ndarray:
  """Returns a band of the segments of a level, [height, S cells, 3]."""
  # The color of the first code of a segment is enough to tell segments apart.
  code_S = codes_U[np.maximum(slot_S, 0) * num_queries]
  color_S3 = np.where(slot_S[:, None] >= 0, colors(code_S), 255)
  band = np.tile(np.repeat(color_S3, _CELL, axis=0), (_BAND, 1, 1))
  is_start_S = np.diff(slot_S, prepend=-1) != 0
  band[:, np.flatnonzero(is_start_S) * _CELL] = 255
  band[-1] = 255
  return band.astype(np.uint8)


def _bars(
  fraction_S: np.ndarray,
  height: int = _CURVE,
  color: tuple[int, int, int] = _INK,
) -> np.ndarray:
  """Returns bars that fill a fraction of the height, [height, S cells, 3]."""
  filled_S = np.repeat(np.round(np.asarray(fraction_S) * height), _CELL)
  is_filled = np.arange(height, 0, -1)[:, None] <= filled_S
  return np.where(is_filled[..., None], color, 255).astype(np.uint8)


def _block(segments: list[np.ndarray]) -> str:
  """Returns a Markdown code block, indented so that no text can end it."""
  texts = [
    types.ids_to_bytes(ids).decode('utf-8', errors='replace')
    for ids in segments
  ]
  return '\n'.join(f'    {line}' for line in '|'.join(texts).splitlines())
