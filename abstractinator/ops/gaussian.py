"""Mixtures of diagonal Gaussians: likelihood and entropy.

Everything is in float32. Bits and nats are per dimension, so that they do not
grow with the width. The entropy of a density may be below 0: it depends on the
unit in which vectors are measured.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array

_LOG_2_PI = math.log(2 * math.pi)


@flax.struct.dataclass
class Mixture:
  """Gaussian mixtures that predict vectors, J components each.

  Attributes:
    logits_J: Unnormalised log weights, [..., J] float32.
    mean_JD: Means of the components, [..., J, D] float32.
    log_variance_JD: Logs of their variances, [..., J, D] float32.
  """

  logits_J: Array
  mean_JD: Array
  log_variance_JD: Array


def nll_nats(mixture: Mixture, x_D: Array) -> Array:
  """Computes -log density per dimension.

  Args:
    mixture: Prediction of each vector.
    x_D: Vectors, [..., D].

  Returns:
    [...] float32, nats per dimension.

  Source: Bishop, Mixture Density Networks, 1994.
  """
  x_D = x_D.astype(jnp.float32)
  difference_JD = x_D[..., None, :] - mixture.mean_JD
  exponent_JD = (
    jnp.square(difference_JD) * jnp.exp(-mixture.log_variance_JD)
    + mixture.log_variance_JD
    + _LOG_2_PI
  )
  log_p_J = jax.nn.log_softmax(mixture.logits_J)
  log_density = jax.nn.logsumexp(
    log_p_J - 0.5 * jnp.sum(exponent_JD, axis=-1), axis=-1
  )
  return -log_density / x_D.shape[-1]


def entropy_bits(mixture: Mixture, temperature: float = 1.0) -> Array:
  """Computes the differential entropy per dimension, or a bound for J > 1.

  The entropy of one Gaussian is the mean of (log2(2 pi e) + log2 variance) / 2.
  A mixture has no closed form, so the smaller of two upper bounds is returned:
  the entropy of the components plus that of the choice between them, tight if
  they lie far apart; and the entropy of the diagonal Gaussian with the mean and
  variances of the mixture, tight if the components coincide.

  Args:
    mixture: Predictions of any shape.
    temperature: Factor on the standard deviations of the components.

  Returns:
    [...] float32, bits per dimension.

  Source: Huber et al., On entropy approximation for Gaussian mixture random
    vectors, 2008, for the first bound; Cover and Thomas, Elements of
    Information Theory, theorem 8.6.5, for the second.
  """
  log_variance_JD = mixture.log_variance_JD + 2 * math.log(temperature)
  log_p_J = jax.nn.log_softmax(mixture.logits_J)
  p_J = jnp.exp(log_p_J)
  choice = -jnp.sum(p_J * log_p_J, axis=-1) / mixture.mean_JD.shape[-1]
  apart = choice + jnp.sum(p_J * _entropy_nats(log_variance_JD), axis=-1)
  if p_J.shape[-1] == 1:
    return apart * BITS_PER_NAT
  p_J1 = p_J[..., None]
  mean_1D = jnp.sum(p_J1 * mixture.mean_JD, axis=-2, keepdims=True)
  spread_JD = jnp.square(mixture.mean_JD - mean_1D) + jnp.exp(log_variance_JD)
  together = _entropy_nats(jnp.log(jnp.sum(p_J1 * spread_JD, axis=-2)))
  return jnp.minimum(apart, together) * BITS_PER_NAT


def _entropy_nats(log_variance_D: Array) -> Array:
  """Returns the entropy per dimension of diagonal Gaussians, [...]."""
  return 0.5 * (1 + _LOG_2_PI + jnp.mean(log_variance_D, axis=-1))
