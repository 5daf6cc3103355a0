"""Exported models: what is written, and what is refused when it is read."""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from abstractinator.config import MeshConfig
from abstractinator.runs import exported, sharding
from abstractinator.runs.load import fingerprint, read_trained
from abstractinator.runs.state import variables_of
from tests.helpers import tiny_run
from tests.helpers.saved_states import abstract, assert_equal, error_of

STEP = 3
LINE = {'step': STEP, 'eval/loss_total': 2.5}
WEIGHTS, CONFIG = exported.WEIGHTS, exported.CONFIG


@pytest.fixture(scope='module')
def config():
  return tiny_run.pyramid_config()


@pytest.fixture(scope='module')
def variables(config):
  return variables_of(tiny_run.random_state(config, STEP))


@pytest.fixture
def folder(config, variables, tmp_path):
  path = tmp_path / 'model'
  exported.write(str(path), config, variables, LINE, card='ü', dtype='float32')
  return path


def write_weights(folder, edit=lambda arrays: None, **metadata):
  """Writes the arrays anew: edited, with the old checksums or other values."""
  path = folder / WEIGHTS
  with safetensors.safe_open(path, framework='np') as file:
    arrays = {name: file.get_tensor(name) for name in file.keys()}
    old = file.metadata()
  edit(arrays)
  safetensors.numpy.save_file(arrays, path, old | metadata)


def test_what_was_written_is_read(config, variables, folder):
  assert sorted(os.listdir(folder)) == sorted(exported.FILES)
  assert (folder / exported.CARD).read_text() == 'ü'
  step, values = exported.read_config(str(folder), STEP)
  assert (step, values) == (STEP, json.loads(json.dumps(config.stored())))
  target = abstract(variables)
  assert_equal(exported.restore_variables(str(folder), target), variables)
  found = read_trained(str(folder))
  assert fingerprint(*found) == fingerprint(config, variables)


def test_arrays_go_where_they_are_wanted(variables, folder):
  mesh = sharding.make_mesh(MeshConfig(1, 8, 1))
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.replicated(mesh)
    ),
    variables,
  )
  found = exported.restore_variables(str(folder), target)
  assert_equal(found, variables)
  assert {len(x.devices()) for x in jax.tree.leaves(found)} == {8}


def test_one_module_is_read(variables, folder):
  quantizer = ('level_1', 'compressor', 'quantizer')

  def part(collection):
    inner = variables[collection]
    for name in quantizer:
      inner = inner[name]
    for name in reversed(quantizer):
      inner = {name: inner}
    return inner

  wanted = {'params': part('params'), 'vq': part('vq')}
  found = exported.restore_variables(
    str(folder), abstract(wanted), place=quantizer
  )
  assert_equal(found, wanted)
  assert len(jax.tree.leaves(found)) > 4


def test_bfloat16_rounds_parameters_alone(config, variables, tmp_path):
  folder = tmp_path / 'model'
  exported.write(
    str(folder), config, variables, LINE, card='', dtype='bfloat16'
  )
  _, found = read_trained(str(folder))
  rounded = jax.tree.map(
    lambda x: np.asarray(x).astype(jnp.bfloat16).astype(np.float32),
    variables['params'],
  )
  assert_equal(found, {**variables, 'params': rounded})
  size = sum(x.size for x in jax.tree.leaves(variables['params']))
  with safetensors.safe_open(folder / WEIGHTS, framework='np') as file:
    kinds = [file.get_slice(x).get_dtype() for x in file.keys()]
  assert kinds.count('BF16') == len(jax.tree.leaves(rounded))
  assert 2 * size < (folder / WEIGHTS).stat().st_size < 4 * size


def flip(path, at):
  with open(path, 'r+b') as file:
    file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
    byte = file.read(1)[0]
    file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
    file.write(bytes([byte ^ 4]))


def change_record(folder, **changes):
  """Changes values beside the checksums, which do not know of it."""
  with safetensors.safe_open(folder / WEIGHTS, framework='np') as file:
    record = json.loads(file.metadata()['abstractinator'])
  write_weights(folder, abstractinator=json.dumps(record | changes))


def rename(arrays):
  (name, *_) = (x for x in arrays if x.endswith('codebook_KC'))
  arrays['vq/other'] = arrays.pop(name)


def edit_first(change):
  def edit(arrays):
    name = min(x for x in arrays if x.startswith('params/level_0/'))
    arrays[name] = change(arrays[name])

  return edit


FIRST = r'params/level_0/[\w/]+'
DAMAGES = {
  'a bit': (lambda x: flip(x / WEIGHTS, -1), rf'{WEIGHTS}.*wrong checksum of '),
  'the header': (lambda x: flip(x / WEIGHTS, 6), rf'{WEIGHTS}.*damaged'),
  'the end': (
    lambda x: os.truncate(x / WEIGHTS, (x / WEIGHTS).stat().st_size - 1),
    rf'{WEIGHTS}.*damaged',
  ),
  'no bytes': (lambda x: os.truncate(x / WEIGHTS, 0), rf'{WEIGHTS}.*damaged'),
  'a name': (lambda x: write_weights(x, rename), 'vq/.* the checkpoint'),
  'a value': (
    lambda x: write_weights(x, edit_first(lambda y: y + 1)),
    f'wrong checksum of {FIRST}',
  ),
  'a shape': (
    lambda x: write_weights(x, edit_first(lambda y: y[:-1])),
    f'{FIRST} is float32',
  ),
  'a dtype': (
    lambda x: write_weights(x, edit_first(lambda y: y.astype(np.float16))),
    f'{FIRST} is float16',
  ),
  'the step': (lambda x: change_record(x, step=4), 'metadata: wrong checksum'),
  'no record': (
    lambda x: write_weights(x, abstractinator=''),
    rf'{WEIGHTS}.*metadata: ',
  ),
  'another record': (
    lambda x: write_weights(x, abstractinator='[1]'),
    rf'{WEIGHTS}.*metadata: ',
  ),
  'a setting': (
    lambda x: (x / CONFIG).write_text(
      (x / CONFIG).read_text().replace('"seed": 0', '"seed": 1')
    ),
    rf'{CONFIG}.*wrong checksum',
  ),
  'no JSON': (lambda x: (x / CONFIG).write_text('{'), rf'{CONFIG}.*Expecting'),
  'no config': (lambda x: os.remove(x / CONFIG), rf'{CONFIG}.*No such file'),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damage_is_refused_by_name(name, variables, folder):
  damage, pattern = DAMAGES[name]
  damage(folder)

  def read():
    exported.read_config(str(folder))
    exported.restore_variables(str(folder), abstract(variables))

  message = error_of(read)
  assert message.startswith(str(folder))
  assert re.search(pattern, message), message


def test_another_step_is_refused(folder):
  message = error_of(read_trained, str(folder), 4)
  assert message.startswith(f'{folder}: got step 4, allowed: 3')


def test_a_full_disk_leaves_an_older_export_whole(
  config, variables, folder, monkeypatch
):
  def fail(descriptor):
    # The other files are small and would find room.
    if os.fstat(descriptor).st_size > 1e5:
      raise OSError('No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='No space'):
    exported.write(
      str(folder), config, variables, {'step': 9}, card='', dtype='bfloat16'
    )
  assert (folder / exported.CARD).read_text() == 'ü'
  assert exported.read_config(str(folder))[0] == STEP
  assert_equal(read_trained(str(folder))[1], variables)
  assert sorted(os.listdir(folder)) == sorted(exported.FILES)
