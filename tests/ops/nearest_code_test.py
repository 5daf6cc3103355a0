import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops.nearest_code import nearest_code

ALL = ['reference', 'xla']


def search(x, codebook, implementation, **options):
  return nearest_code(
    jnp.asarray(x),
    jnp.asarray(codebook),
    implementation=implementation,
    **options,
  )


@pytest.mark.parametrize('implementation', ALL)
@pytest.mark.parametrize(
  ('count', 'size', 'width'),
  [(1, 1, 1), (7, 1, 3), (50, 33, 5), (4095, 9, 2), (4097, 9, 2), (9001, 5, 3)],
)
def test_finds_the_entry_at_the_smallest_distance(
  implementation, count, size, width
):
  """Against float64, where the nearest is nearer than any rounding."""
  rng = np.random.default_rng(count)
  x = rng.normal(size=(count, width)).astype(np.float32)
  codebook = rng.normal(size=(size, width)).astype(np.float32)
  distance = np.square(x.astype(np.float64)[:, None] - codebook).sum(-1)
  code = np.asarray(search(x, codebook, implementation))
  assert code.dtype == np.int32
  assert code.shape == (count,)
  margin = np.partition(distance, 1)[:, 1] - distance.min(-1) if size > 1 else 1
  is_clear = np.broadcast_to(margin > 1e-5, count)
  assert is_clear.mean() > 0.99
  np.testing.assert_array_equal(code[is_clear], distance.argmin(-1)[is_clear])


@pytest.mark.parametrize('implementation', ALL)
def test_the_smallest_index_wins_among_equals(implementation):
  """Small integers: every distance is exact, and there are many ties."""
  rng = np.random.default_rng(0)
  codebook = rng.integers(-1, 2, (40, 3)).astype(np.float32)
  x = rng.integers(-2, 3, (200, 3)).astype(np.float32)
  distance = np.square(x[:, None] - codebook).sum(-1)
  ties = (distance == distance.min(-1, keepdims=True)).sum(-1)
  assert (ties > 1).sum() > 100
  np.testing.assert_array_equal(
    search(x, codebook, implementation), distance.argmin(-1)
  )


@pytest.mark.parametrize('implementation', ALL)
def test_equal_entries_far_apart_tie_for_real_vectors(implementation):
  rng = np.random.default_rng(0)
  half = rng.normal(size=(37, 16)).astype(np.float32)
  code = search(
    rng.normal(size=(100, 16)).astype(np.float32),
    np.concatenate([half, half]),
    implementation,
  )
  assert int(code.max()) < 37


@pytest.mark.parametrize('implementation', ALL)
def test_forbidden_entries_are_never_found(implementation):
  rng = np.random.default_rng(0)
  codebook = rng.normal(size=(9, 4)).astype(np.float32)
  x = np.concatenate([codebook, rng.normal(size=(200, 4))]).astype(np.float32)
  code = search(x, codebook, implementation, forbidden=(0, 3, 8))
  left = np.array([1, 2, 4, 5, 6, 7])
  among_left = search(x, codebook[left], implementation)
  np.testing.assert_array_equal(code, left[among_left])


def test_the_implementations_agree_in_bfloat16():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(300, 8)), jnp.bfloat16)
  codebook = rng.normal(size=(50, 8)).astype(np.float32)
  np.testing.assert_array_equal(
    search(x, codebook, 'xla'), search(x, codebook, 'reference')
  )


def test_an_unknown_implementation_is_an_error():
  with pytest.raises(ValueError, match=r"'faiss'.*reference, xla"):
    search(np.zeros((1, 2)), np.zeros((3, 2)), 'faiss')
