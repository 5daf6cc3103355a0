"""Fixtures of the tests against the original."""

import jax.numpy as jnp
import pytest

from abstractinator.model.attention import RegularAttention
from abstractinator.ops.rope import rope_table


@pytest.fixture
def rounded_tables(monkeypatch):
  """Rounds the rotary tables of regular attention, as the original does."""

  def table(self, position):
    return tuple(
      x.astype(jnp.bfloat16).astype(jnp.float32)
      for x in rope_table(position, self.head_dim)
    )

  monkeypatch.setattr(RegularAttention, 'rotary_table', table)
