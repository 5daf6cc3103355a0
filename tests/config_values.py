"""The default run as plain values, and edits of it."""

import copy
import json
import pathlib
import runpy

import pytest

from abstractinator.config import RunConfig

ROOT = pathlib.Path(__file__).parents[1]
REMOVED = object()
LEVEL = 'model.levels.0'
MLA = {'form': 'mla', 'kv_dim': 12, 'query_dim': 8, 'retrieval_dim': 4}


def plain(config):
  """As train.py hands it over."""
  return json.loads(config.to_json_best_effort())


_DEFAULT = runpy.run_path(str(ROOT / 'configs' / 'default.py'))
DEFAULT, UPPER, TOP_LM = (
  plain(_DEFAULT[name]())
  for name in ('get_config', 'get_upper_level', 'get_top_lm')
)


def values(edits=()):
  """The default run as plain values, with settings at dotted paths replaced."""
  result = copy.deepcopy(DEFAULT)
  for path, value in dict(edits).items():
    *groups, last = path.split('.')
    node = result
    for group in groups:
      node = node[int(group) if group.isdigit() else group]
    if value is REMOVED:
      del node[last]
    else:
      node[last] = copy.deepcopy(value)
  return result


def stacked(**changes):
  """Edits that make a pyramid of the default level and another one."""
  upper = copy.deepcopy(UPPER)
  for path, value in changes.items():
    *groups, last = path.split('__')
    node = upper
    for group in groups:
      node = node[group]
    node[last] = value
  return {'model.levels': [DEFAULT['model']['levels'][0], upper]}


def assert_refused(edits, message):
  """The error is one line with these parts, the setting first."""
  with pytest.raises(ValueError) as info:
    RunConfig.from_dict(values(edits))
  assert '\n' not in str(info.value)
  for part in message:
    assert part in str(info.value)
  if message[0] != 'missing':
    assert str(info.value).startswith(message[0])


def name_of(value):
  """Names a test by the settings that are edited."""
  return ' '.join(value) if isinstance(value, dict) else ''
