import types

import jax.numpy as jnp
import pytest

from abstractinator.benchmarks import generate, timing


@pytest.mark.parametrize(('dtype', 'size'), [('float32', 4), ('bfloat16', 2)])
@pytest.mark.parametrize(('context', 'ids'), [('segment', 5), ('window', 80)])
def test_parameters_are_read_in_the_type_that_is_computed_in(
  dtype, size, context, ids, monkeypatch
):
  monkeypatch.setattr(timing, 'copy_rate', lambda: 1e6)
  config = generate.make_level(context).config
  params = {'expander': jnp.ones((8, 10)), 'compressor': jnp.ones(7)}
  # As modules hold it: a type of jax, or a dtype.
  for held in (getattr(jnp, dtype), jnp.dtype(dtype)):
    model = types.SimpleNamespace(config=config, dtype=held)
    for top, per_byte in (({}, 0), ({'top_lm': jnp.ones(60)}, 20)):
      reading = generate._reading_ms(model, {'params': params | top}, 3.0)
      assert reading == pytest.approx(1e-3 * size * (ids + per_byte))
