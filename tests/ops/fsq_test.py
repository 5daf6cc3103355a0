import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import digits, fsq

quantize, values_of, bound = (
  jax.jit(function, static_argnums=1)
  for function in (fsq.quantize, fsq.values, fsq.bound)
)
ALL = [(8, 5, 5, 5), (2, 3), (7,), (4, 4), (16, 9, 2)]


@pytest.mark.parametrize('levels', ALL)
def test_normal_inputs_cover_every_code(levels):
  rng = np.random.default_rng(0)
  x = jnp.asarray(2 * rng.normal(size=(60_000, len(levels))), jnp.float32)
  values, found = quantize(x, levels)
  codes = digits.compose(found, levels)
  np.testing.assert_array_equal(np.unique(codes), np.arange(np.prod(levels)))
  # Codes give the values back.
  again = values_of(digits.decompose(codes, levels), levels)
  np.testing.assert_allclose(again, values, atol=1e-6)
  assert float(jnp.abs(values).max()) <= 1


@pytest.mark.parametrize('levels', ALL)
def test_extreme_inputs_stay_within_the_levels(levels):
  x = jnp.array([-1e9, -40.0, 0.0, 40.0, 1e9])
  x = jnp.broadcast_to(x[:, None], (5, len(levels)))
  _, found = quantize(x, levels)
  np.testing.assert_array_equal(found[:2], np.zeros((2, len(levels))))
  last = np.broadcast_to(np.array(levels) - 1, (2, len(levels)))
  np.testing.assert_array_equal(found[3:], last)


@pytest.mark.parametrize('levels', ALL)
def test_the_values_are_evenly_spaced_about_0(levels):
  for stage, size in enumerate(levels):
    given = np.zeros((size, len(levels)), np.int32)
    given[:, stage] = np.arange(size)
    values = np.asarray(values_of(jnp.asarray(given), levels))[:, stage]
    np.testing.assert_allclose(np.diff(values), 1 / (size // 2), rtol=1e-6)
    assert values[size // 2] == 0
    assert values[0] == -1


@pytest.mark.parametrize('levels', ALL)
def test_rounding_passes_the_gradient_of_the_bound(levels):
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(50, len(levels))), jnp.float32)
  middle = np.array(levels) // 2
  got = jax.jit(jax.grad(lambda x: fsq.quantize(x, levels)[0].sum()))(x)
  want = jax.jit(jax.grad(lambda x: (fsq.bound(x, levels) / middle).sum()))(x)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert (np.asarray(got) > 0).all()


def test_more_input_never_lowers_a_digit():
  x = jnp.linspace(-6, 6, 4001)[:, None]
  for size in range(2, 12):
    _, found = quantize(x, (size,))
    steps = np.diff(np.asarray(found)[:, 0])
    assert set(steps) == {0, 1}
    assert steps.sum() == size - 1


@pytest.mark.parametrize('levels', ALL)
def test_an_input_of_zero_is_near_a_level(levels):
  bounded = bound(jnp.zeros((len(levels),)), levels)
  assert float(jnp.abs(bounded).max()) < 0.05
