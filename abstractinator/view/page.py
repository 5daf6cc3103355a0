"""What there is to see of a text as a page that needs nothing else."""

import base64
import html
import importlib.resources
import json
from collections.abc import Sequence

import numpy as np

from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.config import LevelConfig
from abstractinator.inspection import InspectedLevel, Inspection

# In the place of an id that is as it should be.
_RIGHT = -2
_MAX_BEYOND = 4
# By their names in JavaScript, smallest first; bytes as all machines of today
# have them.
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
  """A page of HTML, in one file.

  Args:
    inspection: Of the text.
    levels: Of the run, bottom first.
    name: Of the text.
    run: Where the run lies.
    step: Of its checkpoint.

  Returns:
    The file.
  """
  data = {'name': name, 'run': run, 'step': step, **_data(inspection, levels)}
  # Nothing in it may look like the end of the script that it stands in.
  text = json.dumps(data, separators=(',', ':')).replace('<', '\\u003c')
  parts = {
    'TITLE': html.escape(f'{name}: segments and codes'),
    'STYLE': _read('page.css'),
    'DATA': text,
    'SCRIPT': ''.join(map(_read, _SCRIPTS)),
  }
  filled = _read('page.html')
  # The last ones first: what is filled in is not looked through again.
  for place, part in reversed(parts.items()):
    before, after = filled.split(place, 1)
    filled = f'{before}{part}{after}'
  return filled.encode()


def _data(seen: Inspection, configs: Sequence[LevelConfig]) -> dict:
  ids_N = seen.ids()
  is_wrong_N = seen.is_wrong()
  is_other_N = (ids_N < NUM_BYTES) & (seen.forced_N != ids_N)
  return {
    'text': base64.b64encode(seen.text).decode(),
    'rowSize': seen.row_size,
    'levels': [
      _level(level, config)
      for level, config in zip(seen.levels, configs, strict=True)
    ],
    'decoded': _packed(np.where(is_wrong_N, seen.decoded_N, _RIGHT)),
    'forced': _packed(np.where(is_other_N, seen.forced_N, _RIGHT)),
    'beyond': _beyond(seen.beyond),
    'topCost': None
    if seen.top_code_bits_N is None
    else _bits(seen.top_code_bits_N),
    'byteAccuracy': seen.byte_accuracy,
    'forcedAccuracy': 1 - float(is_other_N.sum()) / len(seen.text),
  }


def _level(level: InspectedLevel, config: LevelConfig) -> dict:
  return {
    'rule': config.segmentation.rule,
    'numCodes': config.quantizer.num_codes,
    'queries': config.pooling.num_queries,
    'lengths': _packed(level.lengths_P),
    'codes': _packed(level.codes_PQ),
    'short': _packed(np.packbits(level.is_short_P)),
    'entropy': _bits(level.entropy_bits_N),
    'cost': _bits(level.cost_bits_N),
    'given': _bits(level.expander_bits_N),
  }


def _beyond(of_top: dict[int, np.ndarray]) -> dict:
  """Bytes beyond segments, how many of each, and the first few of them."""
  bytes_of = {top: ids[ids < NUM_BYTES] for top, ids in of_top.items()}
  bytes_of = {top: ids for top, ids in bytes_of.items() if len(ids)}
  few = [ids[:_MAX_BEYOND] for ids in bytes_of.values()]
  return {
    'segments': _packed(np.array([*bytes_of], np.int64)),
    'counts': _packed(np.array([*map(len, bytes_of.values())], np.int64)),
    'bytes': _packed(np.concatenate([np.zeros(0, np.int64), *few])),
    'most': _MAX_BEYOND,
  }


def _bits(bits_N: np.ndarray) -> tuple[str, str]:
  """Hundredths of bits."""
  limit = np.iinfo(np.int16).max
  return _packed(np.clip(np.round(100 * bits_N), 1 - limit, limit))


def _packed(values: np.ndarray) -> tuple[str, str]:
  """Integers in few characters: their type and base64."""
  values = np.asarray(values).reshape(-1).astype(np.int64)
  for name, dtype in _TYPES.items():
    limits = np.iinfo(dtype)
    if (
      limits.min <= values.min(initial=0) <= values.max(initial=0) <= limits.max
    ):
      return name, base64.b64encode(values.astype(dtype).tobytes()).decode()
  raise ValueError(f'{values.min()} to {values.max()}: no type holds them')


def _read(name: str) -> str:
  resource = importlib.resources.files('abstractinator.view') / name
  return resource.read_text(encoding='utf-8')
