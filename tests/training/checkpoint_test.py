import glob
import json
import logging
import os
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from abstractinator.config import MeshConfig
from abstractinator.training import checkpoint, checksum
from abstractinator.training.checkpoint import Checkpointer
from abstractinator.training.sharding import make_mesh, state_shardings

CONFIG = {'seed': 3, 'model': {'levels': [{'d_model': 8}], 'x': None}}


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  collections: dict
  opt_state: tuple


def make_state(seed=0):
  """A state with a leaf of every kind there is."""
  key = jax.random.key(seed)
  params = {
    'dense': {
      'kernel': jax.random.normal(key, (16, 8)),
      'bias': jnp.arange(8, dtype=jnp.bfloat16) / 7,
    },
    'embed': {'embedding': jax.random.normal(key, (9, 16))},
  }
  vq = {
    'is_used': jnp.arange(5) % 2 == 0,
    'last_hit': jnp.arange(5, dtype=jnp.uint32) + jnp.uint32(2**31),
    'small': jnp.arange(-3, 4, dtype=jnp.int8),
  }
  return State(
    step=jnp.int32(7),
    params=params,
    collections={'vq': vq, 'calibration': {'threshold': jnp.float32(0.3)}},
    opt_state=optax.adamw(1e-3).init(params),
  )


def abstract(state, mesh=None):
  """Shapes and dtypes; shardings too if there is a mesh."""
  if mesh is None:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    state_shardings(state, mesh),
  )


def on_mesh(state, mesh):
  return jax.device_put(state, state_shardings(state, mesh))


def save(workdir, *steps, **kwargs):
  with Checkpointer(workdir, max_to_keep=9) as checkpointer:
    for step in steps:
      checkpointer.save(
        step, make_state(step), {'next_index': step}, CONFIG, **kwargs
      )


def assert_equal(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)
  assert jax.tree.map(lambda x: x.dtype, actual) == jax.tree.map(
    lambda x: x.dtype, expected
  )


def error_of(function, *args):
  with pytest.raises(ValueError) as info:
    function(*args)
  message = str(info.value)
  assert '\n' not in message
  return message


def largest_data_file(workdir, step):
  files = glob.glob(
    f'{workdir}/checkpoints/{step}/state/**/d/*', recursive=True
  )
  return max(files, key=os.path.getsize)


def test_round_trip(tmp_path):
  save(tmp_path, 5, 7)
  with Checkpointer(tmp_path, max_to_keep=9) as checkpointer:
    latest = checkpointer.restore(abstract(make_state()))
    earlier = checkpointer.restore(abstract(make_state()), 5)
    assert checkpointer.steps() == [5, 7]
  assert_equal(latest.state, make_state(7))
  assert_equal(earlier.state, make_state(5))
  assert (latest.step, latest.data_position) == (7, {'next_index': 7})
  assert (earlier.step, earlier.data_position) == (5, {'next_index': 5})
  assert latest.config == CONFIG


def test_restores_what_is_still_being_written(tmp_path):
  with Checkpointer(tmp_path, max_to_keep=1) as checkpointer:
    checkpointer.save(1, make_state(), {}, CONFIG)
    assert_equal(
      checkpointer.restore(abstract(make_state())).state, make_state()
    )


@pytest.mark.parametrize('sizes', [(2, 2, 2), (1, 1, 8), (1, 1, 1)])
def test_restores_on_another_mesh(tmp_path, sizes):
  old = make_mesh(MeshConfig(1, 8, 1))
  new = make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
  with Checkpointer(tmp_path, max_to_keep=1) as checkpointer:
    checkpointer.save(1, on_mesh(make_state(), old), {}, CONFIG)
  with Checkpointer(tmp_path, max_to_keep=1) as checkpointer:
    restored = checkpointer.restore(abstract(make_state(), new)).state
  assert_equal(restored, make_state())
  kernel = restored.params['dense']['kernel']
  assert kernel.sharding == NamedSharding(new, P('fsdp', 'tensor'))


def test_state_may_be_donated_after_save(tmp_path):
  with Checkpointer(tmp_path, max_to_keep=1) as checkpointer:
    state = jax.block_until_ready(make_state())
    with jax.transfer_guard('disallow'):
      checkpointer.save(1, state, {}, CONFIG)
    overwrite = jax.jit(
      lambda s: jax.tree.map(lambda x: (x + 1).astype(x.dtype), s),
      donate_argnums=0,
    )
    jax.block_until_ready(overwrite(state))
    restored = checkpointer.restore(abstract(make_state())).state
  assert_equal(restored, make_state())


@pytest.mark.parametrize(
  ('losses', 'kept'),
  [
    ([5, 1, 2, 3, 4, 6], [2, 5, 6]),
    ([5, 4, 3, 2, 1, 0], [5, 6]),
    ([5, 1, float('nan'), None, 4, 6], [2, 5, 6]),
    ([float('nan'), None, 3, 7, float('nan'), None], [3, 5, 6]),
    ([None] * 6, [5, 6]),
  ],
)
def test_keeps_the_latest_and_the_best(tmp_path, losses, kept):
  leaf = {'x': jnp.ones(3)}
  for half in (losses[:3], losses[3:]):
    # A run that goes on knows which checkpoint was best before.
    with Checkpointer(tmp_path, 2, best_metric='loss') as checkpointer:
      start = (checkpointer.latest_step() or 0) + 1
      for step, loss in enumerate(half, start):
        metrics = None if loss is None else {'loss': loss, 'other': -step}
        checkpointer.save(step, leaf, {}, {}, metrics)
  with Checkpointer(tmp_path, 2, best_metric='loss') as checkpointer:
    assert checkpointer.steps() == kept


def test_keeps_the_latest_without_a_metric(tmp_path):
  with Checkpointer(tmp_path, 2) as checkpointer:
    for step in (1, 2, 3):
      checkpointer.save(step, {'x': jnp.ones(3)}, {}, {}, {'loss': step})
  with Checkpointer(tmp_path, 2) as checkpointer:
    assert checkpointer.steps() == [2, 3]


@pytest.mark.parametrize('step', [5, 4])
def test_refuses_to_save_before_the_latest(tmp_path, step):
  save(tmp_path, 5)
  with Checkpointer(tmp_path, max_to_keep=9) as checkpointer:
    message = error_of(checkpointer.save, step, make_state(), {}, CONFIG)
    assert f'got step {step}' in message
    assert '(5)' in message
    assert_equal(
      checkpointer.restore(abstract(make_state())).state, make_state(5)
    )


def test_half_written_checkpoint_is_removed(tmp_path):
  save(tmp_path, 5)
  # What kill -9 in mid-save leaves behind.
  leftover = tmp_path / 'checkpoints/6.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'checkpoints/5', leftover)
  assert checkpoint.read_config(tmp_path) == CONFIG
  with Checkpointer(tmp_path, max_to_keep=9) as checkpointer:
    assert checkpointer.latest_step() == 5
    checkpointer.save(8, make_state(8), {}, CONFIG)
    assert_equal(
      checkpointer.restore(abstract(make_state())).state, make_state(8)
    )
  assert not leftover.exists()


def flip(path):
  with open(path, 'r+b') as f:
    data = bytearray(f.read())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(b ^ 0xFF for b in data[middle:][:8])
    f.seek(0)
    f.write(data)


def truncate(path):
  with open(path, 'r+b') as f:
    f.truncate(os.path.getsize(path) // 2)


def save_one_array(workdir, *steps):
  """One leaf, so that the largest file is its data and not an index."""
  with Checkpointer(workdir, 9, 'loss') as checkpointer:
    for step in steps:
      state = {'x': jax.random.normal(jax.random.key(step), (64, 64))}
      checkpointer.save(step, state, {}, CONFIG, {'loss': 1.0})
  return abstract(state)


# Orbax leaves tasks of its own unfinished when it fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  ('damage', 'file'),
  [
    (truncate, None),
    (os.remove, None),
    (truncate, 'state/manifest.ocdbt'),
    (os.remove, 'state/manifest.ocdbt'),
    (truncate, 'state/_METADATA'),
    (os.remove, 'state/_METADATA'),
    (truncate, 'config/metadata'),
    (os.remove, 'config/metadata'),
    (truncate, 'checksums/metadata'),
    (shutil.rmtree, 'state'),
    (shutil.rmtree, 'checksums'),
    (shutil.rmtree, 'data'),
  ],
)
def test_damaged_checkpoint(tmp_path, damage, file):
  target = save_one_array(tmp_path, 5, 7)
  directory = tmp_path / 'checkpoints/7'
  damage(directory / file if file else largest_data_file(tmp_path, 7))

  def restore():
    with Checkpointer(tmp_path, 9, 'loss') as checkpointer:
      checkpointer.restore(target)

  message = error_of(restore)
  assert f'{directory}: this checkpoint is damaged' in message
  assert 'others there: 5;' in message


def test_flipped_bytes_in_an_array(tmp_path):
  target = save_one_array(tmp_path, 5, 7)
  flip(largest_data_file(tmp_path, 7))
  with Checkpointer(tmp_path, 9) as checkpointer:
    message = error_of(checkpointer.restore, target)
    assert 'checkpoints/7: this checkpoint is damaged' in message
    assert 'wrong checksum of x' in message
    assert checkpointer.restore(target, 5).step == 5


def test_damaged_metrics(tmp_path):
  save_one_array(tmp_path, 5)
  truncate(tmp_path / 'checkpoints/5/metrics/metrics')
  message = error_of(Checkpointer, tmp_path, 9, 'loss')
  assert f'{tmp_path}/checkpoints/*/metrics: one of these is' in message


def test_checksums_notice_each_leaf():
  state = make_state()
  before = checksum.checksums(state)
  leaves, tree = jax.tree.flatten(state)
  for i, leaf in enumerate(leaves):
    changed = (
      leaf.ravel()
      .at[0]
      .set(~leaf.ravel()[0] if leaf.dtype == bool else leaf.ravel()[0] + 1)
    )
    new = jax.tree.unflatten(
      tree, [*leaves[:i], changed.reshape(leaf.shape), *leaves[i + 1 :]]
    )
    after = checksum.checksums(new)
    assert sum(after[name] != before[name] for name in before) == 1


@pytest.mark.parametrize('on_host', [True, False])
def test_checksum_by_hand(on_host, monkeypatch):
  monkeypatch.setattr(checksum, 'is_in_host_memory', lambda _: on_host)
  sums = checksum.checksums(
    {
      'float': jnp.array([1.0, -2.0]),
      'int': jnp.array([-1, 2], jnp.int32),
      'bfloat16': jnp.array([1.0, 1.0], jnp.bfloat16),
      'int8': jnp.array([-1, 1], jnp.int8),
      'bool': jnp.array([True, True, False]),
      'scalar': jnp.uint32(9),
    }
  )
  assert sums == {
    'float': (0x3F800000 + 0xC0000000) % 2**32,
    'int': 1,
    'bfloat16': 2 * 0x3F80,
    'int8': 256,
    'bool': 2,
    'scalar': 9,
  }


def without_bias(state):
  kernel = state.params['dense']['kernel']
  return state.replace(params=state.params | {'dense': {'kernel': kernel}})


def with_kernel(shape, dtype):
  def edit(state):
    dense = state.params['dense'] | {'kernel': jnp.zeros(shape, dtype)}
    return state.replace(params=state.params | {'dense': dense})

  return edit


@pytest.mark.parametrize(
  ('edit', 'parts'),
  [
    (
      with_kernel((16, 4), jnp.float32),
      ('params/dense/kernel', 'float32[16, 8]', 'float32[16, 4]'),
    ),
    (
      with_kernel((16, 8), jnp.bfloat16),
      ('params/dense/kernel', 'float32[16, 8]', 'bfloat16[16, 8]'),
    ),
    (without_bias, ('params/dense/bias', 'is in the checkpoint')),
    (
      lambda s: s.replace(params=s.params | {'new': jnp.ones(2)}),
      ('params/new', 'is not in the checkpoint'),
    ),
  ],
)
def test_wrong_structure(tmp_path, edit, parts):
  save(tmp_path, 5)
  target = abstract(edit(make_state()))
  with Checkpointer(tmp_path, max_to_keep=9) as checkpointer:
    message = error_of(checkpointer.restore, target)
  for part in ('checkpoints/5: ', *parts):
    assert part in message
  variables = {'params': target.params}
  message = error_of(checkpoint.restore_variables, tmp_path, variables)
  for part in parts:
    assert part in message


def test_restore_variables(tmp_path):
  mesh = make_mesh(MeshConfig(1, 8, 1))
  with Checkpointer(tmp_path, max_to_keep=9) as checkpointer:
    checkpointer.save(1, on_mesh(make_state(), mesh), {}, CONFIG)
    checkpointer.save(2, on_mesh(make_state(2), mesh), {}, CONFIG)
  target = abstract(make_state())
  variables = {'params': target.params, 'collections': target.collections}
  for step, seed in ((None, 2), (2, 2), (1, 0)):
    restored = checkpoint.restore_variables(tmp_path, variables, step)
    assert_equal(restored['params'], make_state(seed).params)
    assert_equal(restored['collections'], make_state(seed).collections)
    for leaf in jax.tree.leaves(restored):
      assert leaf.devices() == {jax.devices()[0]}


def test_read_config(tmp_path):
  save(tmp_path, 5)
  before = sorted(tmp_path.rglob('*'))
  assert checkpoint.read_config(tmp_path) == CONFIG
  assert checkpoint.read_config(tmp_path, 5) == CONFIG
  assert sorted(tmp_path.rglob('*')) == before


def restore_nothing(workdir, step=None):
  return checkpoint.restore_variables(workdir, {}, step)


@pytest.mark.parametrize('function', [checkpoint.read_config, restore_nothing])
def test_absent_checkpoints(tmp_path, function):
  message = error_of(function, tmp_path / 'nowhere')
  assert 'workdir' in message
  assert str(tmp_path / 'nowhere') in message
  message = error_of(function, tmp_path)
  assert f'{tmp_path}/checkpoints: no checkpoint' in message
  assert not (tmp_path / 'checkpoints').exists()
  (tmp_path / 'checkpoints').mkdir()
  assert 'no checkpoint' in error_of(function, tmp_path)
  save(tmp_path, 5, 7)
  message = error_of(function, tmp_path, 6)
  assert 'got step 6, allowed: 5, 7' in message


def test_restore_without_a_checkpoint(tmp_path):
  with Checkpointer(tmp_path, max_to_keep=9) as checkpointer:
    assert checkpointer.latest_step() is None
    message = error_of(checkpointer.restore, abstract(make_state()))
    assert f'{tmp_path}/checkpoints: no checkpoint' in message


def test_orbax_is_quiet(tmp_path, caplog):
  with caplog.at_level(logging.INFO, logger='absl'):
    save(tmp_path, 5)
    checkpoint.read_config(tmp_path)
  assert [r.getMessage() for r in caplog.records if r.name == 'absl'] == []


def test_items_are_plain_json(tmp_path):
  save(tmp_path, 5)
  path = tmp_path / 'checkpoints/5'
  assert json.loads((path / 'data/metadata').read_text()) == {'next_index': 5}
  assert json.loads((path / 'config/metadata').read_text()) == CONFIG
  checksums = json.loads((path / 'checksums/metadata').read_text())
  assert checksums['step'] == 7
