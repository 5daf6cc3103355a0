"""Mixtures of diagonal Gaussians: likelihood, entropy, draws.

Everything is in float32. Bits and nats are per dimension, so that they do not
grow with the width; a density has no zero of its own, and its entropy may be
below 0.
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
  """Predictions of vectors, J components each.

  Attributes:
    logits_J: [..., J] float32, unnormalised log weights.
    mean_JD: [..., J, D] float32.
    log_variance_JD: [..., J, D] float32.
  """

  logits_J: Array
  mean_JD: Array
  log_variance_JD: Array


def nll_nats(mixture: Mixture, x_D: Array) -> Array:
  """-log density per dimension.

  Args:
    mixture: Of one prediction for each vector.
    x_D: [..., D].

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
  """Differential entropy per dimension, an upper bound for J > 1.

  One Gaussian: the mean of (log2(2 pi e) + log2 variance) / 2. A mixture has no
  closed form; this is the smaller of two upper bounds: the entropy of the
  components and of the choice between them, tight where they lie far apart, and
  that of the diagonal Gaussian with the mixture's mean and variances, tight
  where they coincide.

  Args:
    mixture: Of any shape.
    temperature: Scales the standard deviations of the components.

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


def sample(key: Array, mixture: Mixture, temperature: float = 1.0) -> Array:
  """Draws vectors.

  Args:
    key: Of jax.random.
    mixture: Of any shape.
    temperature: Scales the standard deviations of the components; 0 gives the
      mean of the most likely component.

  Returns:
    [..., D] float32.

  Raises:
    ValueError: If the temperature is below 0.
  """
  if temperature < 0:
    raise ValueError(f'temperature: got {temperature!r}, allowed: >= 0')
  choice_key, noise_key = jax.random.split(key)
  if temperature == 0:
    choice = jnp.argmax(mixture.logits_J, axis=-1)
  else:
    choice = jax.random.categorical(choice_key, mixture.logits_J)

  def chosen(x_JD):
    return jnp.take_along_axis(x_JD, choice[..., None, None], axis=-2)[
      ..., 0, :
    ]

  mean_D = chosen(mixture.mean_JD)
  noise_D = jax.random.normal(noise_key, mean_D.shape)
  deviation_D = jnp.exp(0.5 * chosen(mixture.log_variance_JD))
  return mean_D + temperature * deviation_D * noise_D


def _entropy_nats(log_variance_D: Array) -> Array:
  return 0.5 * (1 + _LOG_2_PI + jnp.mean(log_variance_D, axis=-1))
