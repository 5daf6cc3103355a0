import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from abstractinator.ops import gaussian
from abstractinator.ops.gaussian import Mixture

nll_nats = jax.jit(gaussian.nll_nats)
entropy_bits = jax.jit(gaussian.entropy_bits, static_argnums=1)


def make_mixture(rng, *batch, components, width, spread=1.0):
  return Mixture(
    jnp.asarray(rng.normal(size=(*batch, components)), jnp.float32),
    jnp.asarray(
      spread * rng.normal(size=(*batch, components, width)), jnp.float32
    ),
    jnp.asarray(rng.normal(size=(*batch, components, width)), jnp.float32),
  )


def density(mixture, x):
  """Computes the density of one mixture at points [N, D], in float64."""
  logits, mean, log_variance = (
    np.asarray(a, np.float64) for a in vars(mixture).values()
  )
  weight = np.exp(logits) / np.exp(logits).sum()
  variance = np.exp(log_variance)
  total = 0.0
  for j in range(len(weight)):
    square = (x - mean[j]) ** 2 / variance[j]
    norm = np.sqrt(2 * np.pi * variance[j])
    total += weight[j] * np.prod(np.exp(-square / 2) / norm, axis=-1)
  return total


def draw(rng, mixture, count):
  """Draws vectors [count, D] from one mixture."""
  choice = rng.choice(
    len(mixture.logits_J), count, p=np.asarray(jax.nn.softmax(mixture.logits_J))
  )
  mean, log_variance = (
    np.asarray(x)[choice] for x in (mixture.mean_JD, mixture.log_variance_JD)
  )
  x = mean + np.exp(0.5 * log_variance) * rng.normal(size=mean.shape)
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize('components', [1, 4])
def test_likelihood_is_that_of_the_formula(components):
  rng = np.random.default_rng(0)
  mixture = make_mixture(rng, components=components, width=3)
  x = rng.normal(size=(50, 3))
  many = jax.tree.map(lambda a: jnp.broadcast_to(a, (50, *a.shape)), mixture)
  np.testing.assert_allclose(
    nll_nats(many, jnp.asarray(x, jnp.float32)),
    -np.log(density(mixture, x)) / 3,
    rtol=1e-4,
    atol=1e-6,
  )


def test_densities_integrate_to_one():
  mixture = make_mixture(np.random.default_rng(1), components=3, width=1)
  x = jnp.linspace(-40, 40, 40_001)[:, None]
  many = jax.tree.map(
    lambda a: jnp.broadcast_to(a, (40_001, *a.shape)), mixture
  )
  nats = nll_nats(many, x)
  assert float(jnp.exp(-nats).sum() * 80 / 40_000) == pytest.approx(1, abs=1e-3)


def test_far_points_and_far_components_stay_finite():
  mixture = Mixture(
    jnp.array([500.0, -500.0]),
    jnp.array([[1e3, 0.0], [0.0, -1e3]]),
    jnp.full((2, 2), -8.0),
  )
  x = jnp.array([5.0, 5.0])
  value, grads = jax.jit(jax.value_and_grad(gaussian.nll_nats))(mixture, x)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert np.isfinite(entropy_bits(mixture))


def test_gradients_are_those_of_differences():
  rng = np.random.default_rng(2)
  mixture = make_mixture(rng, 2, components=3, width=4)
  x = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
  check_grads(
    nll_nats, (mixture, x), order=1, modes=['rev'], eps=1e-2, rtol=1e-2
  )


def test_entropy_of_one_gaussian_is_exact():
  rng = np.random.default_rng(3)
  mixture = make_mixture(rng, 5, components=1, width=6)
  log_variance = np.asarray(mixture.log_variance_JD, np.float64)[:, 0]
  want = 0.5 * (np.log2(2 * np.pi * np.e) + log_variance.mean(-1) / np.log(2))
  np.testing.assert_allclose(entropy_bits(mixture), want, rtol=1e-5)
  # Twice the deviation is a bit more per dimension.
  np.testing.assert_allclose(entropy_bits(mixture, 2.0), want + 1, rtol=1e-5)


@pytest.mark.parametrize('spread', [0.0, 0.5, 3.0, 50.0])
def test_entropy_of_a_mixture_is_an_upper_bound_and_tight_at_both_ends(spread):
  rng = np.random.default_rng(4)
  mixture = make_mixture(rng, components=3, width=2, spread=spread)
  if spread == 0.0:
    mixture = mixture.replace(
      log_variance_JD=jnp.broadcast_to(mixture.log_variance_JD[:1], (3, 2))
    )
  draws = 200_000
  many = jax.tree.map(lambda a: jnp.broadcast_to(a, (draws, *a.shape)), mixture)
  x = draw(rng, mixture, draws)
  nats = np.asarray(nll_nats(many, x), np.float64)
  true, error = nats.mean() / np.log(2), nats.std() / draws**0.5
  bound = float(entropy_bits(mixture))
  assert bound > true - 5 * error
  if spread in (0.0, 50.0):
    assert bound < true + 5 * error + 1e-3


@pytest.mark.parametrize('components', [1, 3])
@pytest.mark.parametrize('log_variance', [-40.0, 40.0])
@pytest.mark.parametrize('temperature', [1e-6, 1.0])
def test_entropies_are_finite_at_the_ends_of_what_is_allowed(
  components, log_variance, temperature
):
  rng = np.random.default_rng(6)
  mixture = make_mixture(rng, components=components, width=3)
  mixture = mixture.replace(
    log_variance_JD=jnp.full((components, 3), log_variance)
  )
  bits = entropy_bits(mixture, temperature)
  one = 0.5 * (np.log(2 * np.pi * np.e) + log_variance) + np.log(temperature)
  assert np.isfinite(bits)
  assert bits >= one / np.log(2) - 1e-3
