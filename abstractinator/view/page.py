"""HTML page that shows an inspected text, in one file without links."""

import base64
import html
import importlib.resources
import json
from collections.abc import Sequence

import numpy as np

from abstractinator.config import LevelConfig
from abstractinator.types import NUM_BYTES
from abstractinator.view.inspection import InspectedLevel, Inspection

# Stands for the true id in arrays of decoded and predicted ids.
_RIGHT = -2
# Bytes past the end of a top segment that the page shows.
_MAX_BEYOND = 4
# Typed arrays of JavaScript, smallest first. They have the byte order of the
# machine that shows the page: little-endian on all that run a browser.
_TYPES = {
  'Uint8Array': '<u1',
  'Uint16Array': '<u2',
  'Int16Array': '<i2',
  'Uint32Array': '<u4',
  'Int32Array': '<i4',
}
_SCRIPTS = ('data.js', 'layout.js', 'lines.js', 'panel.js', 'main.js')


def page(
  inspection: Inspection,
  levels: Sequence[LevelConfig],
  *,
  name: str,
  run: str,
  step: int,
) -> bytes:
  """Returns the content of an HTML file that shows an inspection.

  Args:
    inspection: The inspected text.
    levels: Configs of the levels of the run, bottom first.
    name: Name of the text.
    run: Directory of the run.
    step: Step of its checkpoint.
  """
  data = {'name': name, 'run': run, 'step': step, **_data(inspection, levels)}
  # No part of it may look like the end of the script element it stands in.
  text = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')
  return _filled(
    'page.html',
    TITLE=html.escape(f'{name}: segments and codes'),
    STYLE=_read('page.css'),
    DATA=text,
    SCRIPT=''.join(map(_read, _SCRIPTS)),
  )


def beside(pages: Sequence[bytes], name: str) -> bytes:
  """Returns the content of an HTML file that shows pages beside each other.

  What is chosen in one of them, and the place to which it scrolls, is shown in
  the other one too.

  Args:
    pages: Pages of two runs for the same text; see `page`.
    name: Name of the text.
  """
  frames = [
    f'<iframe srcdoc="{html.escape(x.decode())}"></iframe>' for x in pages
  ]
  return _filled(
    'pair.html',
    TITLE=html.escape(f'{name}: segments and codes of two runs'),
    FRAMES=''.join(frames),
  )


def _filled(template: str, **parts: str) -> bytes:
  """Returns a template with parts, which are in the order of their places."""
  filled = _read(template)
  # Filled from the end, so that the text filled in is never searched.
  for place, part in reversed(parts.items()):
    before, after = filled.split(place, 1)
    filled = f'{before}{part}{after}'
  return filled.encode()


def _data(
  seen: Inspection, configs: Sequence[LevelConfig]
) -> dict[str, object]:
  ids_N = seen.ids()
  is_other_N = (ids_N < NUM_BYTES) & (seen.forced_N != ids_N)
  top_bits_N = seen.top_code_bits_N
  return {
    'text': base64.b64encode(seen.text).decode(),
    'rowSize': seen.row_size,
    'levels': [
      _level(level, config)
      for level, config in zip(seen.levels, configs, strict=True)
    ],
    'decoded': _packed(np.where(seen.is_wrong(), seen.decoded_N, _RIGHT)),
    'forced': _packed(np.where(is_other_N, seen.forced_N, _RIGHT)),
    'beyond': _beyond(seen.beyond),
    'topCost': None if top_bits_N is None else _bits(top_bits_N),
    'byteAccuracy': seen.byte_accuracy,
    'forcedAccuracy': 1 - float(is_other_N.sum()) / len(seen.text),
  }


def _level(level: InspectedLevel, config: LevelConfig) -> dict[str, object]:
  quantizer = config.quantizer
  has_escape = quantizer.kind == 'dictionary'
  return {
    'rule': config.segmentation.rule,
    'numCodes': quantizer.num_codes,
    # See `ops.dictionary`.
    'escape': quantizer.num_codes - 1 if has_escape else None,
    'queries': config.pooling.num_queries,
    'lengths': _packed(level.lengths_P),
    'codes': _packed(level.codes_PQ),
    'short': _packed(np.packbits(level.is_short_P)),
    'entropy': _bits(level.entropy_bits_N),
    'cost': _bits(level.cost_bits_N),
    'given': _bits(level.expander_bits_N),
  }


def _beyond(ids_of_top: dict[int, np.ndarray]) -> dict[str, object]:
  """Returns bytes past top segments: their numbers, and the first few."""
  bytes_of = {top: ids[ids < NUM_BYTES] for top, ids in ids_of_top.items()}
  bytes_of = {top: ids for top, ids in bytes_of.items() if len(ids)}
  few = [ids[:_MAX_BEYOND] for ids in bytes_of.values()]
  return {
    'segments': _packed(np.array([*bytes_of], np.int64)),
    'counts': _packed(np.array([*map(len, bytes_of.values())], np.int64)),
    'bytes': _packed(np.concatenate([np.zeros(0, np.int64), *few])),
    'most': _MAX_BEYOND,
  }


def _bits(bits_N: np.ndarray) -> tuple[str, str]:
  """Returns bits in hundredths, within the range of int16, as `_packed`."""
  limit = np.iinfo(np.int16).max
  return _packed(np.clip(np.round(100 * bits_N), 1 - limit, limit))


def _packed(values: np.ndarray) -> tuple[str, str]:
  """Returns integers as the smallest type that holds them, and base64."""
  values = np.asarray(values).reshape(-1).astype(np.int64)
  low, high = values.min(initial=0), values.max(initial=0)
  for name, dtype in _TYPES.items():
    limits = np.iinfo(dtype)
    if limits.min <= low and high <= limits.max:
      return name, base64.b64encode(values.astype(dtype).tobytes()).decode()
  raise ValueError(f'got integers from {low} to {high}, allowed: 32 bits')


def _read(name: str) -> str:
  resource = importlib.resources.files('abstractinator.view') / name
  return resource.read_text(encoding='utf-8')
