"""What tests against the original share."""

import jax.numpy as jnp
import pytest

from abstractinator.model import attention as attention_lib
from abstractinator.ops.rope import rope_table


@pytest.fixture
def rounded_tables(monkeypatch):
  """Uses rotary tables of the original's precision in regular attention."""

  def table(position, width):
    return tuple(
      x.astype(jnp.bfloat16).astype(jnp.float32)
      for x in rope_table(position, width)
    )

  monkeypatch.setattr(attention_lib, 'rope_table', table)
