import jax
import jax.numpy as jnp

from abstractinator.ops.cache import empty_cache


def test_an_empty_cache_can_be_donated():
  """No array of it is that of another layer too."""
  cache = empty_cache(2, 3, ((1, 4), (1, 4)), 2, jnp.float32)
  after = jax.jit(lambda c: c, donate_argnums=0)(cache)
  assert [layer.key_BGWA.shape for layer in after.layers] == [(2, 1, 3, 4)] * 2
