"""Checkpoints of another structure, and none at all."""

import jax.numpy as jnp
import pytest

from abstractinator.runs import checkpoint
from abstractinator.runs.checkpoint import Checkpointer
from tests.helpers.tiny_checkpoint import abstract, error_of, make_state, save


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
