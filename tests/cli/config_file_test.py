"""Config files by path or name, and overrides of their settings."""

import re

import pytest

from abstractinator.cli import config_file

LEVEL = 'model.levels[0]'


def test_a_config_has_a_path_or_a_name_and_may_have_an_argument():
  path = str(config_file.CONFIGS / 'compare.py')
  assert config_file.load(path) == config_file.load('compare')
  cell = 'stride,fsq,window'
  config = config_file.load(f'{path}:{cell}')
  assert config == config_file.load(f'compare:{cell}')
  assert config.model.levels[0].segmentation.rule == 'stride'


def test_names_are_those_of_the_configs_without_an_argument():
  names = config_file.names()
  assert {'default', 'tiny', 'pod_1b'} < set(names)
  assert 'resume' not in names
  assert names == sorted(names)


@pytest.mark.parametrize(
  ('override', 'value'),
  [
    ('data.batch_size=3', 3),
    ('data.train=a=b', 'a=b'),
    ('num_epochs=2', 2.0),
    ('max_steps=None', None),
    ('load_base_from=None', None),
    ('model.implementation.remat=blocks', 'blocks'),
    ('model.implementation.scan_layers=true', True),
    ('model.implementation.scan_layers=False', False),
    (f'{LEVEL}.segmentation.target_length=None', None),
    (f'{LEVEL}.segmentation.target_length=6', 6.0),
    (f'{LEVEL}.quantizer.levels=(5, 4)', (5, 4)),
  ],
)
def test_an_override_has_the_type_of_its_setting(override, value):
  config = config_file.load('tiny', ['seed=7', override])
  assert config.seed == 7
  found = config
  for name in re.findall(r'\w+', override.partition('=')[0]):
    found = found[int(name)] if name.isdigit() else getattr(found, name)
  assert found == value
  assert type(found) is type(value)


def test_the_last_override_of_a_setting_counts():
  assert config_file.load('tiny', ['seed=7', 'seed=8']).seed == 8


def test_a_group_can_become_none():
  assert config_file.load('stage2').model.top_lm is not None
  overrides = ['model.top_lm=None', f'{LEVEL}.freeze=False']
  assert config_file.load('stage2', overrides).model.top_lm is None


@pytest.mark.parametrize(
  ('source', 'overrides', 'message'),
  [
    ('huge', [], "config: got 'huge', allowed: a Python file, base, compare"),
    ('huge.py', [], "config: got 'huge.py', allowed: a Python file, base"),
    ('configs/tny.py', [], "'configs/tny.py', allowed: configs/tiny.py"),
    ('tny', [], "config: got 'tny', allowed: tiny"),
    ('tiny', ['model.top_lm=1'], 'no top LM, allowed: a config with one'),
    ('tiny', ['model.top_lm.d_model=1'], 'no top LM, allowed: a config'),
    ('tiny', ['num_epochs=x'], "num_epochs: got 'x', allowed: a number"),
    (
      'tiny',
      ['model.implementation.scan_layers=x'],
      "model.implementation.scan_layers: got 'x', allowed: True or False",
    ),
    ('compare:x', [], "ValueError: 'x': got 'x', allowed: entropy_delta"),
    ('tiny', ['data.rows=3'], 'data.rows: unknown setting, allowed: data.'),
    ('tiny', ['batch_size=3'], 'unknown setting, allowed: data.batch_size'),
    ('tiny', [f'{LEVEL}.d_modle=3'], f'allowed: {LEVEL}.d_model'),
    ('tiny', ['model.levels[1].d_model=3'], 'unknown setting'),
    ('tiny', ['data=3'], 'data: unknown setting, allowed: data.batch_size'),
    ('tiny', ['data=None'], 'data: got None, allowed: a group of settings'),
    ('tiny', [f'{LEVEL}.quantizer.levels[0]=5'], 'unknown setting'),
    ('tiny', ['data.batch_size=many'], "got 'many', allowed: an integer"),
    ('tiny', ['data.batch_size=1.5'], 'data.batch_size: got '),
    ('tiny', ['data.batch_size=0'], 'data.batch_size: got 0, allowed: a posit'),
    ('tiny', ['data.batch_size'], "'data.batch_size': got no value, allowed"),
    ('tiny', ['seed=None'], 'seed: got None, allowed: a value of int'),
  ],
)
def test_an_error_is_one_line_about_the_setting(source, overrides, message):
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    config_file.load(source, overrides)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('--max_steps=3', '--max_steps: unknown flag, allowed: --config.max_steps'),
    ('--d_model=3', f'allowed: --config.{LEVEL}.d_model'),
    ('--data.train=x', 'allowed: --config.data.train'),
    ('--workdirs=x', '--workdirs: unknown flag, allowed: --workdir'),
    ('--zzz', '--zzz: unknown flag, allowed: those of --help'),
    ('stray', 'stray: not a flag, allowed: --config.PATH=VALUE'),
  ],
)
def test_a_wrong_flag_is_answered_with_what_it_may_mean(given, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    config_file.read('tiny', [given], others=['--workdir'])


def test_a_value_may_stand_after_a_space():
  found = config_file.read('tiny', ['--config.max_steps', '3'])
  assert found.max_steps == 3


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    ('def get_config(:', 'SyntaxError'),
    ('x = 1', 'KeyError'),
    ('def get_config():\n  return 1', 'get_config() returned int'),
    ('import nowhere', 'ModuleNotFoundError'),
  ],
)
def test_a_file_without_a_config_is_refused(content, reason, tmp_path):
  path = tmp_path / 'a.py'
  path.write_text(content)
  with pytest.raises(ValueError, match=rf'^{path}: .*allowed:') as error:
    config_file.load(str(path))
  assert reason in str(error.value)
  assert '\n' not in str(error.value)


def test_home_directory_in_paths(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'mine.py').write_text(
    (config_file.CONFIGS / 'tiny.py').read_text()
  )
  loaded = config_file.load('~/mine.py')
  assert loaded == config_file.load('tiny')
  loaded = config_file.load('stage2', ['load_base_from=~/base'])
  assert loaded.load_base_from == f'{tmp_path}/base'
  level = 'model.levels[0]'
  loaded = config_file.load(
    'tiny',
    [
      f'{level}.freeze_entropy_model=True',
      f'{level}.load_entropy_model_from=~/entropy',
    ],
  )
  found = loaded.model.levels[0].load_entropy_model_from
  assert found == f'{tmp_path}/entropy'


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"seed": 0', 'cannot be read as JSON'),
    (b'\xff', 'cannot be read as JSON'),
    (b'[' * 5000, 'cannot be read as JSON'),
    (b'[]', 'config: got [], allowed: a group of settings'),
    (b'{}', 'missing settings: '),
    (b'{"model": {"levels": 3}}', 'missing settings: '),
  ],
)
def test_damaged_config_of_a_run_is_named(content, message, tmp_path):
  path = tmp_path / 'config.json'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=re.escape(f'{path}: {message}')) as info:
    config_file.load(f'resume:{tmp_path}')
  assert 'resume.py' not in str(info.value)
  assert '\n' not in str(info.value)
