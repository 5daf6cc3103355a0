"""Checkpoints that are written, kept and restored."""

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
from abstractinator.runs import checkpoint
from abstractinator.runs.checkpoint import Checkpointer
from abstractinator.runs.sharding import make_mesh
from tests.helpers.tiny_checkpoint import (
  CONFIG,
  abstract,
  assert_equal,
  error_of,
  make_state,
  on_mesh,
  save,
)


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
