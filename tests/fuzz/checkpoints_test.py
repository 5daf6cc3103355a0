"""Checkpoints of a run that are damaged on the disk.

Orbax draws names of files, so that cases of one number are alike but not the
same from one process to the next.
"""

import functools
import json
import os
import shutil
import tempfile

import jax
import numpy as np
import pytest

from abstractinator.runs import checkpoint
from abstractinator.runs.checkpointer import Checkpointer, require_sound_metrics
from abstractinator.runs.load import open_source
from abstractinator.runs.state import variables_of
from tests.helpers import fuzz, tiny_run
from tests.helpers.saved_states import abstract

_OLD, _NEW = 3, 5
# A message names the checkpoint, and the item or the array.
_NAMES = (
  rf'^\S+/run/checkpoints/{_NEW}: (this checkpoint is damaged \((checksums'
  r'|config|data|metrics|state): |(collections|params|step)\S* is )'
)
# Other types, and numbers that are none.
_VALUES = (None, True, -1, 1 << 70, 0.5, float('nan'), '', 'x', [], {}, [[0]])


@functools.cache
def _run():
  """Returns the config, the states by step, their shapes, and the directory."""
  # It is removed when the process ends.
  folder = tempfile.TemporaryDirectory()
  config = tiny_run.config()
  states = {step: tiny_run.random_state(config, step) for step in (_OLD, _NEW)}
  with Checkpointer(folder.name, 9, 'loss') as checkpointer:
    for step, state in states.items():
      position, metrics = {'next_row': step}, {'loss': 1 / step}
      checkpointer.save(step, state, position, config.to_dict(), metrics)
  return config, jax.device_get(states), abstract(states[_OLD]), folder


def _draw(random, folder):
  """Returns a file below a directory."""
  found = [x for x in folder.rglob('*') if x.is_file()]
  found.sort(key=lambda x: (x.stat().st_size, x))
  return found[random.integers(len(found))]


def mutate(random, path, old):
  path.write_bytes(fuzz.mutate(random, path.read_bytes()))


def flip_bits(random, path, old):
  data = bytearray(path.read_bytes())
  for bit in random.integers(8 * len(data), size=random.integers(1, 65)):
    data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def insert(random, path, old):
  data = path.read_bytes()
  at, size = (int(random.integers(x)) for x in (len(data) + 1, 4096))
  path.write_bytes(data[:at] + random.bytes(size) + data[at:])


def cut(random, path, old):
  os.truncate(path, random.integers(path.stat().st_size))


def remove(random, path, old):
  """Removes a file or its directory, or leaves a directory in its place."""
  match random.integers(3):
    case 0:
      shutil.rmtree(path.parent)
    case 1:
      path.unlink()
      path.mkdir()
    case _:
      path.unlink()


def swap(random, path, old):
  other = _draw(random, old.parent / str(_NEW))
  content = path.read_bytes()
  path.write_bytes(other.read_bytes())
  other.write_bytes(content)


def take_from_old(random, path, old):
  """Replaces a file, or its directory, by one of the checkpoint before."""
  folder = old / path.parent.relative_to(old.parent / str(_NEW))
  if random.integers(2):
    shutil.rmtree(path.parent)
    shutil.copytree(folder, path.parent)
  else:
    # Names of data files are drawn.
    same = folder / path.name
    shutil.copy(same if same.exists() else _draw(random, folder), path)


def change_json(random, path, old):
  """Gives an item other values, of other types, more of them, or fewer."""
  name = random.choice(['checksums', 'config', 'data', 'metrics'])
  file = 'metrics' if name == 'metrics' else 'metadata'
  path = old.parent / str(_NEW) / name / file
  whole = {'': json.loads(path.read_text())}
  places = _places(whole)
  place, key = places[random.integers(len(places))]
  drawn = _VALUES[random.integers(len(_VALUES))]
  if not random.integers(3):
    place[f'{key}_'] = drawn
  elif place is not whole and not random.integers(3):
    del place[key]
  elif type(place[key]) in (int, float) and random.integers(3):
    place[key] += int(random.integers(1, 10))
  else:
    place[key] = drawn
  path.write_text(json.dumps(whole['']))


def _places(tree):
  """Returns each group of values with each of its keys."""
  found = []
  for key, value in tree.items():
    found.append((tree, key))
    if isinstance(value, dict):
      found += _places(value)
  return found


_CHANGES = (mutate, flip_bits, insert, cut, remove, swap, take_from_old)
_CHANGES += (change_json,)


def _resume(workdir, config, states, target):
  """Reads what a run resumes from; returns the step."""
  require_sound_metrics(workdir)
  found = checkpoint.restore(workdir, target)
  assert found.config == json.loads(json.dumps(config.to_dict()))
  assert found.data_position == {'next_row': found.step}
  jax.tree.map(np.testing.assert_array_equal, found.state, states[found.step])
  return found.step


def _use(workdir, config, states, target):
  """Reads a trained model; returns the step."""
  opened = open_source(workdir)
  assert opened.config.optimizer == config.optimizer
  found = opened.variables(variables_of(target))
  expected = variables_of(states[opened.step])
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  return opened.step


def case(random, folder):
  """The right values of the latest checkpoint, or none."""
  *expected, source = _run()
  workdir = folder / 'run'
  shutil.copytree(source.name, workdir)
  new, old = (workdir / f'checkpoints/{step}' for step in (_NEW, _OLD))
  # Most files of a checkpoint have its arrays, or are of no use.
  file = _draw(random, new / random.choice(['', 'state', 'state/d']))
  _CHANGES[random.integers(len(_CHANGES))](random, file, old)
  read = (_resume, _use)[random.integers(2)]
  step = read(str(workdir), *expected)
  # The one before is taken by itself only when the latest is gone.
  assert step == _NEW or not new.exists()


@pytest.mark.nightly
def test_checkpoints(tmp_path):
  counts = fuzz.run(case, 800, tmp_path, names=_NAMES, prepare=_run)
  assert counts['refused'] > 200
  assert counts['right'] > 200
