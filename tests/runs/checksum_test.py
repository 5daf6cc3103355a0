"""Checksums of the leaves of a state."""

import jax
import jax.numpy as jnp
import pytest

from abstractinator.runs import checkpoint
from tests.helpers.tiny_checkpoint import make_state


def test_checksums_notice_each_leaf():
  state = make_state()
  before = checkpoint.checksums(state)
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
    after = checkpoint.checksums(new)
    assert sum(after[name] != before[name] for name in before) == 1


@pytest.mark.parametrize('on_host', [True, False])
def test_checksum_by_hand(on_host, monkeypatch):
  monkeypatch.setattr(checkpoint, 'is_in_host_memory', lambda _: on_host)
  sums = checkpoint.checksums(
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
