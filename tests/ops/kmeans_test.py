import jax.numpy as jnp
import numpy as np

from abstractinator.ops.kmeans import kmeans


def test_separate_clusters_that_are_all_started_from_are_found():
  rng = np.random.default_rng(0)
  means = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
  label = np.concatenate([np.arange(4), rng.integers(0, 4, 200)])
  x = means[label] + 0.5 * rng.normal(size=(204, 2))
  x = x.astype(np.float32)
  is_valid = np.concatenate([np.ones(4, bool), rng.random(200) < 0.7])
  centers, has_vectors = kmeans(
    jnp.asarray(np.where(is_valid[:, None], x, np.nan)),
    jnp.asarray(is_valid),
    4,
    iterations=5,
  )
  assert has_vectors.all()
  for k in range(4):
    want = x[is_valid & (label == k)].mean(axis=0)
    np.testing.assert_allclose(centers[k], want, atol=1e-5)


def test_iterations_lower_the_distance():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(400, 3)), jnp.float32)
  ok = jnp.ones(400, bool)

  def distance(iterations):
    centers, _ = kmeans(x, ok, 16, iterations=iterations)
    return float(np.square(x[:, None] - centers).sum(-1).min(-1).mean())

  found = [distance(i) for i in (0, 1, 3, 10)]
  assert found == sorted(found, reverse=True)
  assert found[-1] < 0.75 * found[0]


def test_with_fewer_vectors_than_centers_the_rest_are_empty():
  x = jnp.arange(12.0).reshape(6, 2)
  is_valid = jnp.array([False, True, False, True, True, False])
  centers, has_vectors = kmeans(x, is_valid, 5, iterations=3)
  np.testing.assert_array_equal(has_vectors, [True, True, True, False, False])
  np.testing.assert_array_equal(centers[:3], x[is_valid])


def test_without_vectors_every_center_is_empty():
  x = jnp.full((6, 2), jnp.nan)
  centers, has_vectors = kmeans(x, jnp.zeros(6, bool), 4, iterations=3)
  assert not has_vectors.any()
  assert np.isfinite(centers).all()
