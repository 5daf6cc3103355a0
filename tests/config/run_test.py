"""Configs: the files of `configs/`, stored ones, and sizes they imply."""

import ast
import dataclasses
import json
import re
import runpy
import typing

import pytest

from abstractinator import config as config_lib
from abstractinator.config import HealthConfig, RunConfig
from abstractinator.config.section import NonNegativeInt
from abstractinator.runs import workdir as workdirs
from tests.helpers.config_values import (
  DEFAULT,
  LEVEL,
  MLA,
  REMOVED,
  ROOT,
  TOP_LM,
  UPPER,
  plain,
  stacked,
  values,
)


@pytest.mark.parametrize(
  'path',
  sorted((ROOT / 'configs').glob('*.py')),
  ids=lambda p: p.name,
)
def test_every_config_builds(path, tmp_path):
  get_config = runpy.run_path(str(path))['get_config']
  args = []
  if path.name == 'resume.py':
    edited = values(
      {
        'seed': 3,
        f'{LEVEL}.expander.lookback': 2,
        'model.levels': [DEFAULT['model']['levels'][0], UPPER],
        'model.top_lm': TOP_LM | {'d_model': 12},
      }
    )
    (tmp_path / 'config.json').write_text(json.dumps(edited))
    args.append(str(tmp_path))
  config = RunConfig.from_dict(plain(get_config(*args)))
  assert config.model.levels
  if args:
    assert config == RunConfig.from_dict(edited)


@pytest.mark.parametrize(
  ('edits', 'message'),
  [
    ({'microbatches': REMOVED}, 'missing settings: microbatches'),
    ({'health': REMOVED}, 'missing settings: health'),
    ({'data.packing': REMOVED}, 'missing settings: data.packing'),
    ({'data': []}, 'data: got [], allowed: a group of settings'),
    (None, 'config: got None, allowed: a group of settings'),
  ],
)
def test_a_stored_config_is_complete(edits, message, tmp_path):
  stored = edits and values(edits)
  path = str(tmp_path / 'config.json')
  with pytest.raises(ValueError, match=re.escape(f'{path}: {message}')):
    RunConfig.from_stored(stored, path)
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  with pytest.raises(ValueError, match=re.escape(f'{path}: {message}')):
    workdirs.check(str(tmp_path), RunConfig.from_dict(values()))


@pytest.mark.parametrize(
  'setting', ['microbatches', 'data.packing', 'model.levels.0.pooling', 'data']
)
def test_an_incomplete_config_is_not_resumed(setting, tmp_path):
  stored = json.dumps(values({setting: REMOVED}))
  (tmp_path / 'config.json').write_text(stored)
  get_config = runpy.run_path(str(ROOT / 'configs/resume.py'))['get_config']
  path = setting.replace('.0', '[0]')
  message = f'{tmp_path}/config.json: missing settings: {path}'
  with pytest.raises(ValueError, match=re.escape(message)):
    get_config(str(tmp_path))


def test_a_config_survives_its_own_dictionary():
  config = RunConfig.from_dict(values())
  assert RunConfig.from_dict(config.to_dict()) == config
  assert config.model.levels[0].segmentation.target_length == 4.5
  assert config.data.validation == ''


def test_a_setting_added_after_a_release_is_as_before_in_older_runs():
  @dataclasses.dataclass(frozen=True)
  class Newer(HealthConfig):
    grace: NonNegativeInt = 0

  old = HealthConfig(alarms=True, after_steps=3).to_dict()
  assert Newer.from_dict(old) == Newer(True, 3, 0)
  assert Newer.from_dict(old | {'grace': 7}).grace == 7
  with pytest.raises(ValueError, match=r'missing settings: after_steps$'):
    Newer.from_dict({'alarms': True})


def test_what_another_version_wrote_names_it_if_it_is_refused():
  stored = RunConfig.from_dict(values()).stored()
  version = stored['version']
  for other, hint in (
    (version, ''),
    ('9.9', '; install abstractinator 9.9,'),
    (None, ''),
    (['9.9'], ''),
    ('9\n\x1b[2J', ''),
  ):
    stored['version'] = other
    assert RunConfig.from_stored(stored, 'PATH').stored()['version'] == version
    with pytest.raises(ValueError, match=f'PATH: new: unknown.*{hint}') as info:
      RunConfig.from_stored(stored | {'new': 1}, 'PATH')
    assert ('install' in str(info.value)) == bool(hint)


def test_latent_attention_needs_no_even_heads():
  """Its rotary positions turn pairs of the retrieval width, not of a head."""
  edits = {f'{LEVEL}.encoder.attention.{k}': v for k, v in MLA.items()}
  edits |= {f'{LEVEL}.encoder.num_heads': 32, f'{LEVEL}.encoder.window': None}
  encoder = RunConfig.from_dict(values(edits)).model.levels[0].encoder
  assert encoder.attention.to_dict() == MLA
  assert encoder.window is None


def test_whole_numbers_serve_as_fractions():
  config = RunConfig.from_dict(values({'optimizer.clip_norm': 2}))
  assert type(config.optimizer.clip_norm) is float


def test_ids_of_a_level_are_the_slots_below():
  edits = stacked() | {f'{LEVEL}.pooling.num_queries': 2}
  model = RunConfig.from_dict(values(edits)).model
  # 256 bytes in segments of 3, two codes each.
  assert model.sequence_lengths(256) == (256, 2 * 86)
  # 86 slots for 256 bytes at 16; 86 slots for 172 codes at 8.
  assert model.levels[0].max_documents(256) == 86 - 16
  assert model.max_documents(256) == 86 - 22


def test_slots_hold_a_row_of_the_mean_length():
  segmentation = RunConfig.from_dict(values()).model.levels[0].segmentation
  assert segmentation.num_slots(9) == 3
  assert segmentation.num_slots(10) == 4


def sections():
  for value in vars(config_lib).values():
    if dataclasses.is_dataclass(value) and isinstance(value, type):
      yield value


def attributes_read():
  """Returns names that the package reads as attributes, outside of checks."""
  names = set()
  for path in (ROOT / 'abstractinator').rglob('*.py'):
    for node in without_checks(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        names.add(node.attr)
  return names


def without_checks(node):
  is_function = isinstance(node, ast.FunctionDef)
  if not (is_function and node.name.startswith(('__post_init__', '_check_'))):
    yield node
    for child in ast.iter_child_nodes(node):
      yield from without_checks(child)


def test_every_setting_is_read_somewhere():
  # `losses.objective` and `sharding.make_mesh` loop over the fields of these.
  by_name = {config_lib.LossConfig, config_lib.MeshConfig}
  read = attributes_read()
  unread = {
    f'{section.__name__}.{field.name}'
    for section in sections()
    if section not in by_name
    for field in dataclasses.fields(section)
    if field.name not in read
  }
  assert not unread


def test_there_are_no_defaults():
  count = 0
  for section in sections():
    for field in dataclasses.fields(section):
      count += 1
      assert field.default is dataclasses.MISSING, field.name
      assert field.default_factory is dataclasses.MISSING, field.name
    assert typing.get_type_hints(section)
  assert count > 60
