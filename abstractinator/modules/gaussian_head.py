"""A mixture of Gaussians out of a state."""

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.ops.gaussian import Mixture
from abstractinator.types import Array


class GaussianHead(nn.Module):
  """A mixture of diagonal Gaussians out of a state.

  Attributes:
    components: J.
    log_variance_min: Log variances are clipped to be at least this,
    log_variance_max: and at most this.
    dtype: Compute type of the projections.

  Parameters:
    mean/kernel, log_variance/kernel: [D, J, D], and /bias: [J, D].
    weight/kernel: [D, J], and /bias: [J]; with J > 1 only.
  """

  components: int
  log_variance_min: float
  log_variance_max: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Mixture:
    """[..., D] to predictions of vectors of the same width."""
    shape = (self.components, x.shape[-1])

    def project(name, features, variance):
      out = nn.DenseGeneral(
        features,
        dtype=self.dtype,
        kernel_init=nn.initializers.variance_scaling(
          variance, 'fan_in', 'normal'
        ),
        name=name,
      )(x)
      return out.astype(jnp.float32)

    # Means as far apart as embeddings are, so that components differ.
    mean_JD = project('mean', shape, 0.25)
    log_variance_JD = project('log_variance', shape, 0.01)
    return Mixture(
      logits_J=project('weight', self.components, 0.01)
      if self.components > 1
      else jnp.zeros((*x.shape[:-1], 1), jnp.float32),
      mean_JD=mean_JD,
      log_variance_JD=jnp.clip(
        log_variance_JD, self.log_variance_min, self.log_variance_max
      ),
    )
