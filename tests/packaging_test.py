"""The wheel, which is used outside the checkout."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from hatchling.builders.wheel import WheelBuilder

import abstractinator

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """Returns a directory with the files of the wheel, as pip installs them."""
  folder = tmp_path_factory.mktemp('wheel')
  (wheel,) = WheelBuilder(str(ROOT)).build(
    directory=str(folder), versions=['standard']
  )
  site = folder / 'site'
  with zipfile.ZipFile(wheel) as file:
    file.extractall(site)
  return site


def run(site, *args):
  """Runs the command of the wheel in an empty directory."""
  cwd = site.parent / 'elsewhere'
  cwd.mkdir(exist_ok=True)
  return subprocess.run(
    [sys.executable, '-m', 'abstractinator', *args],
    cwd=cwd,
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(site)},
  )


def test_the_wheel_has_the_configs_and_types(installed):
  package = installed / 'abstractinator'
  assert (package / 'py.typed').exists()
  assert (package / 'view' / 'page.html').exists()
  copied = {path.name for path in (package / 'named/configs').glob('*.py')}
  assert copied == {path.name for path in (ROOT / 'configs').glob('*.py')}
  # Nothing but the package and its metadata comes to site-packages.
  names = sorted(path.name for path in installed.iterdir())
  version = abstractinator.__version__
  assert names == ['abstractinator', f'abstractinator-{version}.dist-info']


def test_the_wheel_knows_the_configs_by_name(installed):
  refused = run(installed, 'train', '--config=tiny_2level', '--config.seed=x')
  assert refused.returncode == 2
  assert "seed: got 'x', allowed: an integer" in refused.stderr
  unknown = run(installed, 'train', '--config=tny')
  assert "config: got 'tny', allowed: tiny" in unknown.stderr
  help_text = run(installed, 'train', '--help').stdout
  path = str(installed / 'abstractinator/named/configs/default.py')
  assert path in ''.join(help_text.split())


def test_a_config_of_ones_own_builds_on_those_of_the_wheel(installed):
  cwd = installed.parent / 'elsewhere' / 'configs'
  cwd.mkdir(parents=True, exist_ok=True)
  (cwd / 'mine.py').write_text(
    'from configs import tiny\n'
    'def get_config():\n'
    '  config = tiny.get_config()\n'
    '  config.seed = -5\n'
    '  return config\n'
  )
  ended = run(installed, 'train', '--config=configs/mine.py')
  assert ended.returncode == 2
  assert 'seed: got -5, allowed' in ended.stderr


@pytest.mark.nightly
def test_the_wheel_trains(installed):
  ended = run(installed, 'train', '--config=tiny', '--config.max_steps=3')
  assert ended.returncode == 0, ended.stderr
  assert ': 3 steps done' in ended.stdout
