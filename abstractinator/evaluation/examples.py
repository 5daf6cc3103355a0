"""Rows with their segments and the bytes decoded from their codes, to look at.

In pictures an id is a cell of `_CELL` pixels, and S cells make a row. They are
drawn with Pillow, which every installation has, so that all runs have the same.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from abstractinator import types
from abstractinator.evaluation.coded_rows import CodedRows
from abstractinator.evaluation.reconstruction import align, segments_of_rows
from abstractinator.model.pyramid import DecodedRows
from abstractinator.types import NUM_BYTES

# The first three count ids and lines; the others are pixels of a picture.
_IDS_A_LINE, _IDS_A_TICK = 128, 16
_MAX_LINES = 16
_CELL = 10
_BAND = 14
_LETTER = 15
_CURVE = 28
_GAP = 16
_MARGIN = 76
_LEGEND = 24

_INK = (70, 84, 110)
_SOFT = (120, 130, 148)
_RED = (214, 40, 57)
_PALE_RED = (255, 224, 228)


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
  """Draws rows as a picture, 128 ids a line, with a legend and axes.

  A line has a band for each level, the top level first, in which each segment
  has the color of its first code. Below them are the bytes; in red those that
  decoding from codes alone puts in their place, where they differ; and bars of
  the entropy by which the first level is cut, in proportion to the highest one
  in the batch.

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
  lines = [_legend(highest)]
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
    wrong = np.tile(np.repeat(is_wrong_S, _CELL)[:, None], (_LETTER, 1, 1))
    strip = np.concatenate(
      [
        *bands,
        np.full((_LETTER, len(ids_S) * _CELL, 3), 255, np.uint8),
        np.where(wrong, _PALE_RED, 255).astype(np.uint8),
        _bars(np.where(is_real_S, entropy_BS[row] / highest, 0.0)),
      ]
    )
    letters = (_letters(ids_S, is_real_S), _letters(beside_S, is_wrong_S))
    lines += [
      _line(strip, letters, begin, len(bands))
      for begin in range(0, int(is_real_S.sum()), _IDS_A_LINE)
    ]
  return np.concatenate(lines[: 1 + _MAX_LINES])


def _line(
  strip: np.ndarray,
  letters: tuple[Sequence[str], Sequence[str]],
  begin: int,
  num_levels: int,
) -> np.ndarray:
  """Returns a line of a picture with its axes, [height, width, 3] uint8.

  Args:
    strip: Bands, room for letters and bars of a row, [height, S cells, 3].
    letters: The bytes of the row, and those decoded wrong, S each.
    begin: First id of the line.
    num_levels: Number of bands.
  """
  part = strip[:, begin * _CELL : (begin + _IDS_A_LINE) * _CELL]
  size = (_MARGIN + _IDS_A_LINE * _CELL, _GAP + len(strip))
  picture = Image.new('RGB', size, 'white')
  picture.paste(Image.fromarray(part), (_MARGIN, _GAP))
  pen = ImageDraw.Draw(picture)
  for i in range(0, part.shape[1] // _CELL, _IDS_A_TICK):
    _write(pen, _MARGIN + i * _CELL, _GAP // 2, str(begin + i), _SOFT, 9, 'lm')
  names = [f'level {number}' for number in reversed(range(num_levels))]
  heights = [*[_BAND] * num_levels, _LETTER, _LETTER, _CURVE]
  y = _GAP
  for name, height in zip(
    [*names, 'bytes', 'from codes', 'entropy'], heights, strict=True
  ):
    _write(pen, _MARGIN - 6, y + height // 2, name, _SOFT, 11, 'rm')
    y += height
  y = _GAP + num_levels * _BAND + _LETTER // 2
  for row, color in zip(letters, (_INK, _RED), strict=True):
    for i, letter in enumerate(row[begin : begin + _IDS_A_LINE]):
      x = _MARGIN + i * _CELL + _CELL // 2
      _write(pen, x, y, letter, color, 12, 'mm')
    y += _LETTER
  return np.asarray(picture)


def _legend(highest: float) -> np.ndarray:
  """Returns the legend of a picture, [height, width, 3] uint8.

  Args:
    highest: Entropy of the highest bar, bits.
  """
  size = (_MARGIN + _IDS_A_LINE * _CELL, _LEGEND)
  picture = Image.new('RGB', size, 'white')
  pen = ImageDraw.Draw(picture)
  x = _MARGIN
  for color, text in (
    (
      tuple(colors(np.array(1)).tolist()),
      'a segment, in the color of its code',
    ),
    (_PALE_RED, 'wrong when decoded from codes alone'),
    (_INK, f'entropy that sets the cuts of level 0, up to {highest:.2f} bits'),
  ):
    pen.rectangle((x, 6, x + 14, _LEGEND - 6), fill=color)
    _write(pen, x + 20, _LEGEND // 2, text, _INK, 12, 'lm')
    x += 44 + int(pen.textlength(text, font=_font(12)))
  return np.asarray(picture)


def _write(
  pen: ImageDraw.ImageDraw,
  x: int,
  y: int,
  text: str,
  color: tuple[int, int, int],
  size: int,
  anchor: str,
) -> None:
  """Writes a text at a place; `anchor` is Pillow's, such as 'lm'."""
  pen.text((x, y), text, fill=color, font=_font(size), anchor=anchor)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(size)


def _letters(ids_S: np.ndarray, is_shown_S: np.ndarray) -> list[str]:
  """Returns ids as letters: a cross for no id, a dot for one that has none."""
  letters_S = [chr(i) if 0x20 <= i < 0x7F else '\u00b7' for i in ids_S]
  found_S = np.where(ids_S < 0, '\u00d7', letters_S)
  return np.where(is_shown_S, found_S, '').tolist()


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
