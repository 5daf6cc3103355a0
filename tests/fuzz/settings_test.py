"""Settings with drawn values, at drawn places of stored configs."""

import json
import math

import pytest

from abstractinator.config import RunConfig
from tests.helpers import fuzz
from tests.helpers.config_values import DEFAULT, MLA, TOP_LM, UPPER, values

_NUMBERS = (
  *(-1, 0, 1, 2, 3, 7, 16, 255, 256, 2**31 - 1, 2**31, 2**63, -(2**63)),
  *(10**29, 10**400, 10**5000),
  *(0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 1e-6, 1e29, 1e308),
  *(math.inf, -math.inf, math.nan),
)
_OTHERS = (
  *(None, True, False, '', 'x', '\0', 'a\nb', '\ud800', 'é' * 5000),
  *([], {}, [1], [[]], [None] * 5000, {'a': 1}, {'': {}}),
  *('auto', 'all', 'space', 'vq', 'rvq', 'fsq', 'mla', 'regular', 'head'),
  *('entropy', 'gaussian', 'gradient', 'window', 'full', 'discrete'),
)


def _sound(random):
  """Returns the values of a run of one level or two, with or without a top."""
  edits = {}
  if random.integers(2):
    edits['model.levels'] = [DEFAULT['model']['levels'][0], UPPER]
  if random.integers(2):
    edits['model.top_lm'] = TOP_LM
  if random.integers(3) == 0:
    edits['model.levels.0.encoder.attention'] = MLA
  return values(edits)


def _places(tree, path=()):
  """Returns the group, key and path of each value."""
  pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
  found = []
  for key, value in pairs:
    found.append((tree, key))
    if isinstance(value, (dict, list)):
      found += _places(value)
  return found


def _drawn(random, old):
  """Returns a value in place of another, of its kind more often than not."""
  kind = random.integers(6)
  if kind == 0:
    return _OTHERS[random.integers(len(_OTHERS))]
  if kind == 1 and isinstance(old, (int, float)):
    return old * int(random.integers(1, 9))
  if kind == 2 and isinstance(old, (int, float)):
    return int(old) >> int(random.integers(4))
  if kind == 3:
    return float(10 ** random.uniform(-12, 12))
  return _NUMBERS[random.integers(len(_NUMBERS))]


def case(random, folder):
  tree = _sound(random)
  for _ in range(random.integers(1, 4)):
    places = _places(tree)
    group, key = places[random.integers(len(places))]
    match random.integers(12):
      case 0 if isinstance(group, dict):
        del group[key]
      case 1 if isinstance(group, dict):
        group[f'{key}{random.choice(["x", " ", "é", "."])}'] = group[key]
      case _:
        group[key] = _drawn(random, group[key])
  config = RunConfig.from_stored(tree, f'{folder}/config.json')
  # Accepted settings are kept as they are, and stored whole.
  again = json.loads(json.dumps(config.to_dict()))
  assert RunConfig.from_dict(again) == config
  length = config.data.sequence_length
  sizes = config.model.sequence_lengths(length)
  sizes += (config.model.num_top_codes(length),)
  assert 0 < min(sizes) <= max(sizes) <= 2**24
  assert config.model.max_documents(length) >= 1


@pytest.mark.nightly
def test_settings(tmp_path):
  counts = fuzz.run(case, 2000, tmp_path)
  assert counts['right'] > 100
  assert counts['refused'] > 1000
