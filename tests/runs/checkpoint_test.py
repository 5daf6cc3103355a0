"""Checkpoints: written, kept, restored, refused, damaged."""

import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from abstractinator.config import MeshConfig
from abstractinator.runs import checkpoint, checksums, sharding
from abstractinator.runs.checkpointer import Checkpointer
from abstractinator.runs.state import variables_of
from tests.helpers.saved_states import (
  CONFIG,
  abstract,
  assert_equal,
  error_of,
  make_state,
  on_mesh,
  save,
  steps_in,
)


def test_round_trip(tmp_path):
  save(tmp_path, 5, 7)
  latest = checkpoint.restore(tmp_path, abstract(make_state()))
  earlier = checkpoint.restore(tmp_path, abstract(make_state()), 5)
  assert steps_in(tmp_path) == [5, 7]
  assert checkpoint.latest_step(tmp_path) == 7
  assert_equal(latest.state, make_state(7))
  assert_equal(earlier.state, make_state(5))
  assert (latest.step, latest.data_position) == (7, {'next_index': 7})
  assert (earlier.step, earlier.data_position) == (5, {'next_index': 5})
  assert latest.config == CONFIG


@pytest.mark.parametrize('sizes', [(2, 2, 2), (1, 1, 8), (1, 1, 1)])
def test_restores_on_another_mesh(tmp_path, sizes):
  old = sharding.make_mesh(MeshConfig(1, 8, 1))
  new = sharding.make_mesh(
    MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))]
  )
  with Checkpointer(tmp_path, max_to_keep=1) as checkpointer:
    checkpointer.save(1, on_mesh(make_state(), old), {}, CONFIG)
  shapes = abstract(make_state())
  target = sharding.with_shardings(
    shapes, sharding.state_shardings(shapes, new)
  )
  restored = checkpoint.restore(tmp_path, target).state
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
  restored = checkpoint.restore(tmp_path, abstract(make_state())).state
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
  for start, half in ((1, losses[:3]), (4, losses[3:])):
    # A resumed run knows which checkpoint was the best before.
    with Checkpointer(tmp_path, 2, best_metric='loss') as checkpointer:
      for step, loss in enumerate(half, start):
        metrics = None if loss is None else {'loss': loss, 'other': -step}
        checkpointer.save(step, leaf, {}, {}, metrics)
  assert steps_in(tmp_path) == kept


def test_keeps_the_latest_without_a_metric(tmp_path):
  with Checkpointer(tmp_path, 2) as checkpointer:
    for step in (1, 2, 3):
      checkpointer.save(step, {'x': jnp.ones(3)}, {}, {}, {'loss': step})
  assert steps_in(tmp_path) == [2, 3]


@pytest.mark.parametrize('step', [5, 4])
def test_refuses_to_save_before_the_latest(tmp_path, step):
  save(tmp_path, 5)
  with Checkpointer(tmp_path, max_to_keep=9) as checkpointer:
    message = error_of(checkpointer.save, step, make_state(), {}, CONFIG)
  assert f'got step {step}' in message
  assert '(5)' in message
  restored = checkpoint.restore(tmp_path, abstract(make_state()))
  assert_equal(restored.state, make_state(5))


def test_half_written_checkpoint_is_removed(tmp_path):
  save(tmp_path, 5)
  # A run that is killed while it saves leaves such a directory.
  leftover = tmp_path / 'checkpoints/6.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'checkpoints/5', leftover)
  assert checkpoint.read_config(tmp_path) == (5, CONFIG)
  assert checkpoint.latest_step(tmp_path) == 5
  save(tmp_path, 8)
  assert steps_in(tmp_path) == [5, 8]
  restored = checkpoint.restore(tmp_path, abstract(make_state()))
  assert_equal(restored.state, make_state(8))


def test_restore_variables(tmp_path):
  mesh = sharding.make_mesh(MeshConfig(1, 8, 1))
  with Checkpointer(tmp_path, max_to_keep=9) as checkpointer:
    for step in (1, 2):
      state = make_state(step)
      average = make_state(step + 10).params
      state = on_mesh(dataclasses.replace(state, ema=average), mesh)
      checkpointer.save(step, state, {}, CONFIG)
  target = variables_of(abstract(make_state()))
  for step, found in ((None, 2), (2, 2), (1, 1)):
    restored = checkpoint.restore_variables(tmp_path, target, step)
    assert_equal(restored, variables_of(make_state(found)))
    for leaf in jax.tree.leaves(restored):
      assert leaf.devices() == {jax.devices()[0]}
  restored = checkpoint.restore_variables(tmp_path, target, params_field='ema')
  assert_equal(restored['params'], make_state(12).params)
  assert_equal(restored['vq'], make_state().collections['vq'])


def test_restore_variables_of_one_module(tmp_path):
  save(tmp_path, 5)
  dense = make_state(5).params['dense']
  # The module has no collections, but others have.
  target = {'params': {'dense': abstract(dense)}}
  restored = checkpoint.restore_variables(tmp_path, target, place=('dense',))
  assert_equal(restored, {'params': {'dense': dense}})
  del target['params']['dense']['bias']
  message = error_of(
    lambda: checkpoint.restore_variables(tmp_path, target, place=('dense',))
  )
  assert 'params/dense/bias is in the checkpoint but not wanted' in message


def test_read_config(tmp_path):
  save(tmp_path, 5)
  before = sorted(tmp_path.rglob('*'))
  assert checkpoint.read_config(tmp_path) == (5, CONFIG)
  assert checkpoint.read_config(tmp_path, 5) == (5, CONFIG)
  assert sorted(tmp_path.rglob('*')) == before


def test_orbax_is_quiet(tmp_path, caplog):
  with caplog.at_level(logging.INFO, logger='absl'):
    save(tmp_path, 5)
    checkpoint.read_config(tmp_path)
    logging.getLogger('absl').info('Other messages are kept.')
  messages = [r.getMessage() for r in caplog.records if r.name == 'absl']
  assert messages == ['Other messages are kept.']


def test_items_are_plain_json(tmp_path):
  save(tmp_path, 5)
  path = tmp_path / 'checkpoints/5'
  assert json.loads((path / 'data/metadata').read_text()) == {'next_index': 5}
  assert json.loads((path / 'config/metadata').read_text()) == CONFIG
  record = json.loads((path / 'checksums/metadata').read_text())
  assert record['step'] == 5
  assert record['arrays']['step'] == 7


def test_checksums_notice_each_leaf():
  state = make_state()
  before = checksums.of_arrays(state)
  leaves, tree = jax.tree.flatten(state)
  for i, leaf in enumerate(leaves):
    flat = leaf.ravel()
    other = ~flat[0] if leaf.dtype == bool else flat[0] + 1
    changed = flat.at[0].set(other).reshape(leaf.shape)
    new = jax.tree.unflatten(tree, [*leaves[:i], changed, *leaves[i + 1 :]])
    after = checksums.of_arrays(new)
    assert sum(after[name] != before[name] for name in before) == 1


@pytest.mark.parametrize(
  'function', [checksums.on_host_memory, checksums.on_devices]
)
def test_checksums_by_hand(function):
  sums = function(
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


def with_dense(**changes):
  """Returns an edit of a state: other leaves of a module, None to remove."""

  def edit(state):
    dense = state.params['dense'] | changes
    dense = {name: x for name, x in dense.items() if x is not None}
    return dataclasses.replace(state, params=state.params | {'dense': dense})

  return edit


@pytest.mark.parametrize(
  ('edit', 'parts'),
  [
    (
      with_dense(kernel=jnp.zeros((16, 4))),
      ('params/dense/kernel', 'float32[16, 8]', 'float32[16, 4]'),
    ),
    (
      with_dense(kernel=jnp.zeros((16, 8), jnp.bfloat16)),
      ('params/dense/kernel', 'float32[16, 8]', 'bfloat16[16, 8]'),
    ),
    (with_dense(bias=None), ('params/dense/bias', 'is in the checkpoint')),
    (
      with_dense(new=jnp.ones(2)),
      ('params/dense/new', 'is not in the checkpoint'),
    ),
  ],
)
def test_wrong_structure(tmp_path, edit, parts):
  save(tmp_path, 5)
  target = abstract(edit(make_state()))
  for message in (
    error_of(checkpoint.restore, tmp_path, target),
    error_of(checkpoint.restore_variables, tmp_path, variables_of(target)),
  ):
    for part in ('checkpoints/5: ', *parts):
      assert part in message


def restore_params(workdir, step=None):
  return checkpoint.restore_variables(workdir, {'params': {}}, step)


@pytest.mark.parametrize('function', [checkpoint.read_config, restore_params])
def test_absent_checkpoints(tmp_path, function):
  message = error_of(function, tmp_path / 'nowhere')
  assert 'workdir' in message
  assert str(tmp_path / 'nowhere') in message
  message = error_of(function, tmp_path)
  assert f'{tmp_path}/checkpoints: no checkpoint' in message
  assert not (tmp_path / 'checkpoints').exists()
  assert checkpoint.latest_step(tmp_path) is None
  (tmp_path / 'checkpoints').mkdir()
  assert 'no checkpoint' in error_of(function, tmp_path)
  assert checkpoint.latest_step(tmp_path) is None
  save(tmp_path, 5, 7)
  message = error_of(function, tmp_path, 6)
  assert 'got step 6, allowed: 5, 7' in message
