"""Plain values of the default run, and edits of them."""

import copy
import json
import pathlib
import runpy

import pytest

from abstractinator.config import RunConfig

ROOT = pathlib.Path(__file__).parents[2]
REMOVED = object()
LEVEL = 'model.levels.0'
MLA = {'form': 'mla', 'kv_dim': 12, 'query_dim': 8, 'retrieval_dim': 4}


def plain(config):
  """Returns the plain values of a ConfigDict."""
  return json.loads(config.to_json_best_effort())


_DEFAULT = runpy.run_path(str(ROOT / 'configs' / 'default.py'))
DEFAULT, UPPER, TOP_LM = (
  plain(_DEFAULT[name]())
  for name in ('get_settings', 'get_upper_level', 'get_top_lm')
)


def values(edits=()):
  """Returns the default run as plain values, edited at dotted paths."""
  return _edited(DEFAULT, edits)


def stacked(edits=()):
  """Returns the edits that put an upper level, itself edited, on the first."""
  return {
    'model.levels': [DEFAULT['model']['levels'][0], _edited(UPPER, edits)]
  }


def _edited(tree, edits):
  tree = copy.deepcopy(tree)
  for path, value in dict(edits).items():
    *groups, last = path.split('.')
    node = tree
    for group in groups:
      node = node[int(group) if group.isdigit() else group]
    if value is REMOVED:
      del node[last]
    else:
      node[last] = copy.deepcopy(value)
  return tree


def assert_refused(edits, message):
  """Asserts an error of one line with these parts, the setting first."""
  with pytest.raises(ValueError) as info:
    RunConfig.from_dict(values(edits))
  assert '\n' not in str(info.value)
  for part in message:
    assert part in str(info.value)
  if message[0] != 'missing':
    assert str(info.value).startswith(message[0])


def name_of(value):
  """Names a test by the settings that it edits."""
  return ' '.join(value) if isinstance(value, dict) else ''
