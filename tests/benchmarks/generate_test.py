import types

import jax.numpy as jnp
import pytest

from abstractinator.benchmarks import generate, timing


@pytest.mark.parametrize(('dtype', 'size'), [('float32', 4), ('bfloat16', 2)])
def test_parameters_are_read_in_the_type_that_is_computed_in(
  dtype, size, monkeypatch
):
  monkeypatch.setattr(timing, 'copy_rate', lambda: 1e6)
  # As modules hold it: a type of jax, or a dtype.
  for held in (getattr(jnp, dtype), jnp.dtype(dtype)):
    model = types.SimpleNamespace(dtype=held)
    variables = {'params': {'a': jnp.ones((10, 5)), 'b': jnp.ones(50)}}
    assert generate._reading_ms(model, variables) == pytest.approx(0.1 * size)
