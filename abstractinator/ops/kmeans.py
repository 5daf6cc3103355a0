"""Centers of vectors."""

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.nearest_code import nearest_code
from abstractinator.types import Array


def kmeans(
  x_NC: Array, is_valid_N: Array, num_centers: int, *, iterations: int
) -> tuple[Array, Array]:
  """Lloyd's algorithm from the first valid vectors.

  Args:
    x_NC: [N, C] float32, N at least `num_centers`.
    is_valid_N: [N] bool; the others touch nothing.
    num_centers: K.
    iterations: How often centers move to the mean of their vectors.

  Returns:
    centers_KC [K, C] float32 and has_vectors_K [K] bool. With fewer vectors
    than centers, or equal ones, some centers have none.
  """
  x_NC = jnp.where(is_valid_N[:, None], x_NC, 0.0)
  order_N = jnp.argsort(~is_valid_N, stable=True)[:num_centers]
  # A copy of the first loses every tie, and so stays empty.
  order_N = jnp.where(is_valid_N[order_N], order_N, order_N[0])

  def step(_, carry):
    centers_KC, _ = carry
    code_N = nearest_code(x_NC, centers_KC, implementation='xla')
    code_N = jnp.where(is_valid_N, code_N, num_centers)
    add = dict(num_segments=num_centers + 1)
    hits_K = jax.ops.segment_sum(is_valid_N.astype(jnp.float32), code_N, **add)
    sum_KC = jax.ops.segment_sum(x_NC, code_N, **add)[:num_centers]
    hits_K = hits_K[:num_centers]
    mean_KC = sum_KC / jnp.maximum(hits_K, 1.0)[:, None]
    has_vectors_K = hits_K > 0
    return jnp.where(has_vectors_K[:, None], mean_KC, centers_KC), has_vectors_K

  start = (x_NC[order_N], jnp.zeros((num_centers,), bool))
  return lax.fori_loop(0, iterations, step, start)
