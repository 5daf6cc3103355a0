import jax.numpy as jnp
import numpy as np

from abstractinator.ops.rope import rope_table, rotate


def make_vectors(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_rotation_keeps_norms():
  x = make_vectors(2, 50, 3, 8)
  y = rotate(x, rope_table(jnp.arange(50), 8))
  np.testing.assert_allclose(
    jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )
  assert np.max(np.abs(y - x)) > 0.5


def test_position_0_is_left_alone():
  x = make_vectors(2, 1, 3, 8)
  np.testing.assert_array_equal(rotate(x, rope_table(jnp.zeros(1), 8)), x)


def test_scores_depend_on_distance_alone():
  q, k = make_vectors(2, 1, 1, 1, 8)

  def score(a, b):
    rotated = (
      rotate(x, rope_table(jnp.array([p]), 8)) for x, p in ((q, a), (k, b))
    )
    return float(jnp.vdot(*rotated))

  for near, far in (((5, 2), (105, 102)), ((0, 7), (40, 47))):
    np.testing.assert_allclose(score(*near), score(*far), atol=1e-4)
  assert abs(score(5, 2) - score(5, 3)) > 1e-2


def test_a_pair_is_half_the_width_apart_and_turns_by_its_own_angle():
  """Width 4, base 100: 1 and 0.1 radians a position."""
  x = jnp.array([1.0, 10.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
  y = rotate(x, rope_table(jnp.array([3]), 4, base=100.0))
  np.testing.assert_allclose(
    y.reshape(4),
    [np.cos(3.0), 10 * np.cos(0.3), np.sin(3.0), 10 * np.sin(0.3)],
    rtol=1e-5,
  )


def test_positions_may_differ_from_row_to_row():
  x = make_vectors(2, 3, 1, 4)
  position = jnp.array([[0, 1, 2], [5, 9, 4]])
  y = rotate(x, rope_table(position, 4))
  for row in range(2):
    np.testing.assert_allclose(
      y[row],
      rotate(x[row : row + 1], rope_table(position[row], 4))[0],
      rtol=1e-6,
    )


def test_bfloat16_is_rotated_in_float32():
  x = make_vectors(1, 300, 2, 8).astype(jnp.bfloat16)
  table = rope_table(jnp.arange(300), 8)
  y = rotate(x, table)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    y, rotate(x.astype(jnp.float32), table).astype(jnp.bfloat16)
  )
