"""Compiled programs on the disk."""

import os
import pathlib

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache as of_jax

from abstractinator.runs import compilation_cache
from abstractinator.runs.compilation_cache import VARIABLE, Programs

_SETTINGS = (
  'jax_compilation_cache_dir',
  'jax_enable_compilation_cache',
  'jax_persistent_cache_min_compile_time_secs',
)
_HIT = '/jax/compilation_cache/cache_hits'


@pytest.fixture
def no_cache(monkeypatch):
  """Takes the cache of the tests from jax, and gives it back."""
  monkeypatch.setattr(of_jax, 'get_file_cache', of_jax.get_file_cache)
  before = {name: getattr(jax.config, name) for name in _SETTINGS}
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  of_jax.reset_cache()


def compiled_anew(x):
  """Computes a function that this process has to compile or to load."""

  def cube(x):
    return x * x * x

  return jax.jit(cube)(x)


def programs(folder) -> list[pathlib.Path]:
  return sorted(pathlib.Path(folder).glob('jit_cube*'))


@pytest.fixture
def hits():
  """Counts the programs that this test has read from the disk."""
  events: list[str] = []

  def listen(event, **_):
    events.append(event)

  jax.monitoring.register_event_listener(listen)
  yield lambda: events.count(_HIT)
  jax.monitoring.unregister_event_listener(listen)


@pytest.mark.usefixtures('no_cache')
def test_a_program_is_compiled_once_and_damage_is_mended(tmp_path, hits):
  folder = tmp_path / 'new' / 'programs'
  line = compilation_cache.use(str(folder))
  assert str(folder) in line
  assert VARIABLE in line
  # The second call says nothing.
  assert compilation_cache.use() is None
  x = jnp.arange(3.0)
  first = hits()
  expected = compiled_anew(x)
  assert hits() == first
  (path,) = programs(folder)
  whole = path.read_bytes()
  assert np.array_equal(compiled_anew(x), expected)
  assert hits() == first + 1
  # A byte that changed in the middle, half of a file, and nothing of it.
  middle = len(whole) // 2
  flipped = bytes([whole[middle] ^ 1])
  for damaged in (
    whole[:middle] + flipped + whole[middle + 1 :],
    whole[:middle],
    b'',
  ):
    path.write_bytes(damaged)
    assert np.array_equal(compiled_anew(x), expected)
    assert hits() == first + 1
    assert len(path.read_bytes()) > middle
  assert np.array_equal(compiled_anew(x), expected)
  assert hits() == first + 2
  # Another directory takes the place of the first.
  assert compilation_cache.use(str(tmp_path / 'other')) is not None
  compiled_anew(x)
  assert programs(tmp_path / 'other')


def test_a_damaged_program_is_never_handed_out(tmp_path):
  kept = Programs(str(tmp_path))
  kept.put('key', b'program')
  assert kept.get('key') == b'program'
  (path,) = tmp_path.iterdir()
  whole = path.read_bytes()
  for damaged in (whole[:-1], whole[1:], whole[:-1] + b'M', b''):
    path.write_bytes(damaged)
    assert kept.get('key') is None
    assert not path.exists()


@pytest.mark.usefixtures('no_cache')
def test_a_directory_that_cannot_be_made_is_no_error(tmp_path):
  (tmp_path / 'file').write_text('')
  line = compilation_cache.use(str(tmp_path / 'file' / 'programs'))
  assert line.startswith('compiled programs: not kept (')
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures('no_cache')
def test_a_disk_that_fills_up_is_said_once(tmp_path, capsys):
  kept = Programs(str(tmp_path / 'gone'))
  kept.put('a', b'1')
  kept.put('b', b'2')
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('compiled programs: no longer kept (')
  assert kept.get('a') is None


@pytest.mark.usefixtures('no_cache')
def test_what_the_environment_says_wins(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  jax.config.update('jax_enable_compilation_cache', False)
  assert compilation_cache.use() is None
  assert compilation_cache.use(str(tmp_path / 'flag')) is None
  jax.config.update('jax_enable_compilation_cache', True)
  # jax reads its variable when it is imported.
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  assert compilation_cache.use() is None
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'mine')
  assert not list(tmp_path.iterdir())
  jax.config.update('jax_compilation_cache_dir', None)
  assert str(tmp_path) in compilation_cache.use()
  assert list(tmp_path.iterdir()) == [tmp_path / 'abstractinator']
  # A directory that is asked for takes the place of another.
  assert str(tmp_path / 'flag') in compilation_cache.use(str(tmp_path / 'flag'))


@pytest.mark.usefixtures('no_cache')
@pytest.mark.parametrize(('variable', 'flag'), [('', None), (None, '')])
def test_an_empty_name_keeps_nothing(tmp_path, monkeypatch, variable, flag):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  jax.config.update('jax_compilation_cache_dir', variable)
  assert compilation_cache.use(flag) is None
  compiled_anew(jnp.arange(3.0))
  assert compilation_cache.use() is None
  assert not list(tmp_path.iterdir())


def test_the_directory_is_that_of_the_user_and_of_the_cpu(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('XDG_CACHE_HOME', 'not/absolute')
  cpu = 'processor\t: 0\nflags\t\t: sse avx\ncpu MHz\t\t: 1\n\nprocessor\t: 1\n'
  found = []
  for text in (cpu, cpu.replace('1\n', '2\n'), cpu.replace('avx', 'avx2')):
    monkeypatch.setattr(pathlib.Path, 'read_text', lambda _, text=text: text)
    found.append(compilation_cache.default_directory())
  assert found[0].startswith(f'{tmp_path}/.cache/abstractinator/jax/')
  assert found[0] == found[1] != found[2]


def test_the_least_recently_used_go(tmp_path, monkeypatch):
  (tmp_path / '.abstractinator-left').mkdir()
  os.utime(tmp_path / '.abstractinator-left', (0, 0))
  (tmp_path / '.abstractinator-young').mkdir()
  program = bytes(1000)
  kept = Programs(str(tmp_path), max_bytes=16_000)
  for number in range(10):
    kept.put(str(number), program)
    os.utime(tmp_path / f'{number}.program', (number, number))
  assert kept.get('0') == program
  # Another process.
  kept = Programs(str(tmp_path), max_bytes=16_000)
  for number in range(10, 20):
    kept.put(str(number), program)
  there = {int(path.stem) for path in tmp_path.glob('*.program')}
  assert there >= {0, *range(10, 20)}
  assert len(there) * 1032 <= 16_000
  assert {x.name for x in tmp_path.glob('.*')} == {'.abstractinator-young'}
  # It would take the place of too many others.
  kept.put('big', bytes(2001))
  assert kept.get('big') is None
