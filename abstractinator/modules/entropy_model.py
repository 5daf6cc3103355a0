"""The small language model of a level, whose uncertainty cuts segments."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.config import EntropyHeadsConfig, StackConfig
from abstractinator.modules import layers
from abstractinator.modules.blocks import Stack
from abstractinator.ops import gaussian, sampling
from abstractinator.ops.cache import Cache
from abstractinator.ops.gaussian import Mixture
from abstractinator.ops.segmentation import document_starts
from abstractinator.types import Array, Special


@flax.struct.dataclass
class EntropyOutput:
  """Predictions of ids, each from those before it in its document.

  Attributes:
    logits: [..., V] float32.
    mixture: Of the id's embedding; None without a Gaussian head.
  """

  logits: Array
  mixture: Mixture | None


@flax.struct.dataclass
class EntropyCache:
  """What the model remembers of each row.

  Attributes:
    stack: Of the stack.
    gaussian_stack: Of the layers before the Gaussian head; None without.
  """

  stack: Cache
  gaussian_stack: Cache | None


def predictive_entropy_bits(
  output: EntropyOutput, heads: EntropyHeadsConfig
) -> Array:
  """How uncertain predictions are: what cuts segments.

  Args:
    output: Predictions of any shape.
    heads: Which head is asked, and how its distribution is filtered.

  Returns:
    [...] float32. Of the logits: bits, finite under every filter. Of the
    Gaussian head: bits per dimension, see `ops.gaussian.entropy_bits`.
  """
  if heads.source == 'gaussian':
    return gaussian.entropy_bits(output.mixture, heads.temperature)
  filtered = sampling.filter_logits(
    output.logits,
    temperature=heads.temperature,
    top_k=heads.top_k,
    top_p=heads.top_p,
  )
  return sampling.entropy_bits(filtered)


def sample_next(
  key: Array, output: EntropyOutput, heads: EntropyHeadsConfig
) -> Array:
  """Draws what comes next from the head that `heads.source` names.

  Args:
    key: Of jax.random.
    output: Predictions of any shape.
    heads: Which head is asked, and how its distribution is filtered.

  Returns:
    Of the logits [...] int32, ids; of the Gaussian head [..., D] float32,
    embeddings of ids.
  """
  if heads.source == 'gaussian':
    return gaussian.sample(key, output.mixture, heads.temperature)
  filtered = sampling.filter_logits(
    output.logits,
    temperature=heads.temperature,
    top_k=heads.top_k,
    top_p=heads.top_p,
  )
  return sampling.sample(key, filtered)


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


class EntropyModel(nn.Module):
  """Predicts each id from those before it.

  Attributes:
    config: Sizes of the stack.
    heads: What stands on it.
    d_model: D.
    num_ids: Ordinary ids; the specials come after them.
    implementation: Of the attention op.
    dtype: Compute type.

  Parameters:
    embed/embedding: [V, D].
    stack: See `Stack`.
    head/kernel: [D, V], or with `tie_to_embedding` [D, D], from states to the
      space of embeddings.
    gaussian_head: See `GaussianHead`, and gaussian_stack, before it: see
      `Stack`; with `gaussian_components` and `gaussian_layers` above 0 only.
  """

  config: StackConfig
  heads: EntropyHeadsConfig
  d_model: int
  num_ids: int
  implementation: str
  dtype: jnp.dtype

  def setup(self):
    vocab = self.num_ids + len(Special)
    self.embed = layers.embed(vocab, self.d_model, self.dtype)
    self.stack = Stack(
      self.config, self.d_model, self.implementation, self.dtype
    )
    # Tied, a matrix stands between: without it the id that was fed, whose
    # embedding is part of the state, would be predicted from the first step on.
    self.head = layers.logits(
      self.d_model if self.heads.tie_to_embedding else vocab, self.dtype
    )
    h = self.heads
    if h.gaussian_components:
      self.gaussian_head = GaussianHead(
        h.gaussian_components,
        h.gaussian_log_variance_min,
        h.gaussian_log_variance_max,
        self.dtype,
      )
      if self._has_gaussian_stack:
        self.gaussian_stack = Stack(
          dataclasses.replace(self.config, num_layers=h.gaussian_layers),
          self.d_model,
          self.implementation,
          self.dtype,
        )

  def __call__(self, ids_BS: Array, document_BS: Array) -> EntropyOutput:
    """Predicts each id given the ids before it in its document.

    Args:
      ids_BS: [B, S] int32.
      document_BS: [B, S] int32, -1 on padding.

    Returns:
      [B, S] predictions.
    """
    fed_BS = layers.shift_right(
      ids_BS, document_starts(document_BS), self.num_ids + Special.BOS
    )
    x_BSD = self.stack(self.embed(fed_BS), document_BS)
    y_BSD = x_BSD
    if self.heads.gaussian_detach:
      y_BSD = lax.stop_gradient(y_BSD)
    if self._has_gaussian_stack:
      y_BSD = self.gaussian_stack(y_BSD, document_BS)
    return self._predict(x_BSD, y_BSD)

  def init_cache(
    self, batch_size: int, capacity: int, dtype: jnp.dtype
  ) -> EntropyCache:
    """An empty cache for `step`.

    Args:
      batch_size: B.
      capacity: Ids that a row of a model without window may come to; see
        `Stack.init_cache`.
      dtype: Of keys and values, usually the compute type.

    Returns:
      The cache.
    """
    size = (batch_size, capacity, dtype)
    return EntropyCache(
      stack=self.stack.init_cache(*size),
      gaussian_stack=self.gaussian_stack.init_cache(*size)
      if self._has_gaussian_stack
      else None,
    )

  def step(
    self,
    last_id_B: Array,
    document_B: Array,
    cache: EntropyCache,
    active_B: Array,
  ) -> tuple[EntropyOutput, EntropyCache]:
    """Predicts the next id of each row, before it is seen.

    Args:
      last_id_B: [B] int32, the id before it, BOS at a document's first.
      document_B: [B] int32, document of the id that is predicted.
      cache: From `init_cache` or the step before.
      active_B: [B] bool, rows to predict an id of. Of the others the cache
        stays as it is and the prediction means nothing.

    Returns:
      [B] predictions, NaN beyond the capacity of a model without window, and
      the cache.
    """
    x_BD, stack = self.stack.step(
      self.embed(last_id_B), document_B, cache.stack, active_B
    )
    y_BD, gaussian_stack = x_BD, None
    if self._has_gaussian_stack:
      y_BD, gaussian_stack = self.gaussian_stack.step(
        y_BD, document_B, cache.gaussian_stack, active_B
      )
    return self._predict(x_BD, y_BD), EntropyCache(stack, gaussian_stack)

  def gaussian_nats(self, ids: Array, output: EntropyOutput) -> Array:
    """-log density of the embeddings of ids, which get no gradient.

    Args:
      ids: [...] int32.
      output: Their predictions, with a mixture.

    Returns:
      [...] float32, nats per dimension.
    """
    target_D = lax.stop_gradient(self.embed(ids))
    return gaussian.nll_nats(output.mixture, target_D)

  @property
  def _has_gaussian_stack(self) -> bool:
    return self.heads.gaussian_components > 0 and self.heads.gaussian_layers > 0

  def _predict(self, x: Array, y: Array) -> EntropyOutput:
    """From states of the stack and of what stands before the Gaussian head."""
    logits = self.head(x)
    if self.heads.tie_to_embedding:
      logits = self.embed.attend(logits) * self.d_model**-0.5
    return EntropyOutput(
      logits=logits.astype(jnp.float32),
      mixture=self.gaussian_head(y) if self.heads.gaussian_components else None,
    )
