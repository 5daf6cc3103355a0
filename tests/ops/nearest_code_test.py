import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import nearest_code as nearest_code_lib
from abstractinator.ops.nearest_code import nearest_code
from tests.helpers.lowering import lowered

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
  [(1, 1, 1), (7, 1, 3), (50, 33, 5), (2001, 9, 2)],
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


def make_mesh(data, tensor):
  return jax.make_mesh(
    (data, 1, tensor),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )


def real_inputs(count, size, width=16):
  rng = np.random.default_rng(0)
  half = rng.normal(size=(size // 2, width))
  # Every entry is there twice, and many vectors are entries.
  codebook = np.concatenate([half, half]).astype(np.float32)
  x = rng.normal(size=(count, width)).astype(np.float32)
  x[::3] = codebook[rng.integers(0, size, len(x[::3]))]
  return x, codebook


def test_tiles_find_what_the_whole_does(monkeypatch):
  x, codebook = real_inputs(300, 112)
  whole = search(x, codebook, 'xla', forbidden=(5,))
  monkeypatch.setattr(nearest_code_lib, 'TILE_VECTORS', 64)
  monkeypatch.setattr(nearest_code_lib, 'TILE_ENTRIES', 32)
  in_tiles = search(x, codebook, 'xla', forbidden=(5,))
  np.testing.assert_array_equal(whole, in_tiles)
  # Only the first of two equal entries is found, unless it is forbidden.
  found = set(np.asarray(in_tiles).tolist())
  assert found & set(range(56, 112)) == {61}


@pytest.mark.parametrize(('data', 'tensor'), [(2, 4), (8, 1), (1, 8)])
def test_eight_devices_find_what_one_does(data, tensor):
  """Vectors and entries are split; equal ones are on different devices."""
  x, codebook = real_inputs(304, 112)
  alone = search(x, codebook, 'xla', forbidden=(5, 61))
  with jax.set_mesh(make_mesh(data, tensor)):
    compiled = (
      jax.jit(lambda *args: nearest_code(*args, implementation='xla'))
      .lower(x, codebook)
      .compile()
    )
    split = jax.jit(lambda *a: search(*a, 'xla', forbidden=(5, 61)))(
      x, codebook
    )
  np.testing.assert_array_equal(alone, split)
  # A device has distances of its own vectors and entries only.
  tile = f'f32[{304 // data},{112 // tensor}]'
  assert tile in compiled.as_text()
  assert ('all-gather' in compiled.as_text()) == (tensor > 1)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_no_array_grows_with_vectors_times_entries(platform):
  x = jax.ShapeDtypeStruct((8192, 16), jnp.float32)
  codebook = jax.ShapeDtypeStruct((65536, 16), jnp.float32)
  text = lowered(
    lambda *args: nearest_code(*args, implementation='xla'),
    x,
    codebook,
    platform=platform,
  )
  assert 'tensor<1024x4096xf32>' in text
  sizes = [
    np.prod([int(n) for n in shape.split('x')[:-1]])
    for shape in re.findall(r'tensor<([0-9x]+xf32)>', text)
  ]
  assert max(sizes) <= 1024 * 4096


def test_an_unknown_implementation_is_an_error():
  with pytest.raises(ValueError, match=r"'faiss'.*reference, xla"):
    search(np.zeros((1, 2)), np.zeros((3, 2)), 'faiss')
