"""Rows with their segments and what codes make of them, to look at."""

import flax.struct
import numpy as np

from abstractinator import types
from abstractinator.evaluation.coded_rows import CodedLevel, slots_of_bytes
from abstractinator.evaluation.reconstruction import align
from abstractinator.model.pyramid import DecodedRows
from abstractinator.types import NUM_BYTES, Array

# Of a picture, pixels but for the first two.
_IDS_A_LINE = 128
_MAX_LINES = 16
_CELL = 8
_BAND = 14
_CURVE = 28
_ERRORS = 4
_GAP = 12

_INK = (70, 84, 110)
_RED = (214, 40, 57)


@flax.struct.dataclass
class ExampleRows:
  """Rows that were encoded and decoded.

  Attributes:
    ids_BS: [B, S] int32.
    levels: Bottom first.
    decoded: Bytes of the top codes.
  """

  ids_BS: Array
  levels: tuple[CodedLevel, ...]
  decoded: DecodedRows


def markdown(rows: ExampleRows, num_rows: int) -> str:
  """Rows with their segments and reconstructions.

  Args:
    rows: On the host.
    num_rows: How many rows to show.

  Returns:
    For each row its text with a bar between segments, and below it what the
    codes alone decode to, likewise divided.
  """
  texts = []
  for ids_S, index_S, ids_PL, length_P in zip(
    rows.ids_BS[:num_rows],
    rows.levels[0].index_BS,
    rows.decoded.ids_BPL,
    rows.decoded.length_BP,
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


def draw(
  rows: ExampleRows, num_queries: tuple[int, ...], num_rows: int
) -> np.ndarray:
  """The same rows as a picture, 128 ids a line.

  Each line has a band for each level, the top one first, in which segments have
  the colour of their code; below it the entropy that cut the first level, its
  highest value as high as there is room; and in red the bytes that codes alone
  do not give back.

  Args:
    rows: On the host.
    num_queries: Codes of a segment, of each level.
    num_rows: How many rows to show; at most 16 lines in all.

  Returns:
    [height, width, 3] uint8.
  """
  slots = slots_of_bytes(rows.levels, num_queries)
  entropy_BS = rows.levels[0].entropy_bits_BS
  is_real_BS = slots[0] >= 0
  highest = max(float(entropy_BS[is_real_BS].max(initial=0.0)), 1e-6)
  lines = []
  for row in range(min(num_rows, len(rows.ids_BS))):
    decoded = rows.decoded
    beside_S, _ = align(
      decoded.ids_BPL[row],
      decoded.length_BP[row],
      decoded.rows.origin_BP[row],
      slots[-1][row],
    )
    is_byte_S = is_real_BS[row] & (rows.ids_BS[row] < NUM_BYTES)
    is_wrong_S = is_byte_S & (beside_S != rows.ids_BS[row])
    bands = [
      _band(slot_BS[row], level.codes_BU[row], queries)
      for slot_BS, level, queries in zip(
        slots, rows.levels, num_queries, strict=True
      )
    ]
    height_S = np.where(is_real_BS[row], entropy_BS[row] / highest, 0.0)
    bands = [*bands[::-1], _bars(height_S), _bars(is_wrong_S, _ERRORS, _RED)]
    strip = np.concatenate(bands)
    width = _IDS_A_LINE * _CELL
    for begin in range(0, int(is_real_BS[row].sum()) * _CELL, width):
      part = strip[:, begin : begin + width]
      missing = width - part.shape[1]
      lines.append(
        np.pad(part, ((_GAP, 0), (0, missing), (0, 0)), constant_values=255)
      )
  return np.concatenate(lines[:_MAX_LINES])


def colours(codes: np.ndarray) -> np.ndarray:
  """Colours of codes, [..., 3] uint8: light, and unlike for near numbers."""
  # Steps of the golden ratio around the circle of hues are far apart.
  hue = np.asarray(codes, np.float64)[..., None] * 0.6180339887
  parts = np.abs(np.add(hue, [0, 2 / 3, 1 / 3]) % 1.0 * 6.0 - 3.0) - 1.0
  return (255 * (0.5 + 0.4 * np.clip(parts, 0.0, 1.0))).astype(np.uint8)


def _band(slot_S, codes_U, num_queries) -> np.ndarray:
  """Segments of a level, [height, S cells, 3]."""
  # Of several codes the first; the colour of any tells segments apart.
  code_S = codes_U[np.maximum(slot_S, 0) * num_queries]
  colour_S3 = np.where(slot_S[:, None] >= 0, colours(code_S), 255)
  band = np.tile(np.repeat(colour_S3, _CELL, axis=0), (_BAND, 1, 1))
  is_start_S = np.diff(slot_S, prepend=-1) != 0
  band[:, np.flatnonzero(is_start_S) * _CELL] = 255
  band[-1] = 255
  return band.astype(np.uint8)


def _bars(share_S, height=_CURVE, colour=_INK) -> np.ndarray:
  """Bars of so much of the height, [height, S cells, 3]."""
  filled_S = np.repeat(np.round(np.asarray(share_S) * height), _CELL)
  is_filled = np.arange(height, 0, -1)[:, None] <= filled_S
  return np.where(is_filled[..., None], colour, 255).astype(np.uint8)


def _block(segments: list[np.ndarray]) -> str:
  """A Markdown code block, indented so that no text can end it."""
  texts = [
    types.ids_to_bytes(ids).decode('utf-8', errors='replace')
    for ids in segments
  ]
  return '\n'.join(f'    {line}' for line in '|'.join(texts).splitlines())
