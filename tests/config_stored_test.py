"""Runs that were stored before a setting was there can be read."""

import copy
import dataclasses
import json
import pathlib
import runpy

import pytest

from abstractinator.config import RunConfig
from abstractinator.config.stored import completed
from abstractinator.training import workdir

ROOT = pathlib.Path(__file__).parents[1]
_CONFIG = runpy.run_path(str(ROOT / 'configs' / 'default.py'))['get_config']()
CONFIG = RunConfig.from_dict(json.loads(_CONFIG.to_json_best_effort()))
LATER = (
  ('microbatches',),
  ('health',),
  ('data', 'packing'),
  ('data', 'vocab_size'),
  ('model', 'implementation', 'scan_layers'),
  ('optimizer', 'relative_rates'),
  ('optimizer', 'relative_rates', 'top_lm'),
  ('optimizer', 'ema_decay'),
)


def without(path):
  values = copy.deepcopy(CONFIG.to_dict())
  group = values
  for name in path[:-1]:
    group = group[name]
  del group[path[-1]]
  return values


@pytest.mark.parametrize('path', LATER, ids='.'.join)
def test_a_setting_that_came_later_is_as_runs_were_before_it(path):
  stored = without(path)
  before = copy.deepcopy(stored)
  with pytest.raises(ValueError, match='missing settings'):
    RunConfig.from_dict(stored)
  read = RunConfig.from_dict(completed(stored))
  assert stored == before
  # Of the default run, alarms alone are not as they were.
  alarms = CONFIG.health.alarms and path != ('health',)
  assert read == dataclasses.replace(
    CONFIG, health=dataclasses.replace(CONFIG.health, alarms=alarms)
  )


def test_what_is_stored_stays():
  values = CONFIG.to_dict()
  values['optimizer']['ema_decay'] = 0.5
  assert completed(values) == values


@pytest.mark.parametrize('path', [('seed',), ('data',), ('optimizer',)])
def test_what_was_always_there_is_missed(path):
  with pytest.raises(ValueError, match='missing settings'):
    RunConfig.from_dict(completed(without(path)))


@pytest.mark.parametrize('stored', [None, 3, [], {'data': []}])
def test_what_is_no_config_is_left_to_be_refused(stored):
  with pytest.raises(ValueError):
    RunConfig.from_dict(completed(stored))


def test_a_run_of_before_goes_on_as_it_is_configured_now(tmp_path):
  workdir.claim(str(tmp_path), CONFIG)
  stored = without(('health',))
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  assert CONFIG.health.alarms
  workdir.check(str(tmp_path), CONFIG)
  with pytest.raises(ValueError, match=r'^seed: got 1'):
    workdir.check(str(tmp_path), dataclasses.replace(CONFIG, seed=1))
