"""The small language model of a level, whose uncertainty cuts segments."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.config import EntropyHeadsConfig, StackConfig
from abstractinator.modules import layers
from abstractinator.modules.blocks import Stack
from abstractinator.modules.gaussian_head import GaussianHead
from abstractinator.ops import cache as cache_lib
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
  """What an entropy model remembers of each row.

  Attributes:
    stack: Of the stack.
    gaussian_stack: Of the one before the Gaussian head; None without.
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
  return sampling.entropy_bits(_filtered(output, heads))


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
  return sampling.sample(key, _filtered(output, heads))


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
      if h.gaussian_layers:
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
    x_BSD = self.stack(self._fed(ids_BS, document_BS), document_BS)
    y_BSD = self._for_gaussian(x_BSD)
    if self._has_gaussian_stack:
      y_BSD = self.gaussian_stack(y_BSD, document_BS)
    return self.predict(x_BSD, y_BSD)

  def init_cache(
    self, batch_size: int, capacity: int, dtype: jnp.dtype
  ) -> EntropyCache:
    """An empty cache for `prefill` and `step`.

    Args:
      batch_size: B.
      capacity: Predictions that a row of a model without window may come to;
        see `Stack.init_cache`. The one of the id after n ids is the n + 1st.
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

  def prefill(
    self, ids_BS: Array, document_BS: Array, cache: EntropyCache
  ) -> tuple[EntropyOutput, EntropyCache]:
    """The call, remembering every row for `step`.

    Its predictions are those of the ids given. Nothing is predicted yet of the
    id after a row's last: the first `step` does, and is fed that last id.

    Args:
      ids_BS: [B, S] int32.
      document_BS: [B, S] int32, -1 on padding, which only ends a row.
      cache: From `init_cache`; what else it held is gone.

    Returns:
      [B, S] predictions, and the cache.

    Raises:
      ValueError: If there is no window and rows are longer than the cache.
    """
    x_BSD, stack = self.stack.prefill(
      self._fed(ids_BS, document_BS), document_BS, cache.stack
    )
    y_BSD, gaussian_stack = self._for_gaussian(x_BSD), None
    if self._has_gaussian_stack:
      y_BSD, gaussian_stack = self.gaussian_stack.prefill(
        y_BSD, document_BS, cache.gaussian_stack
      )
    return self.predict(x_BSD, y_BSD), EntropyCache(stack, gaussian_stack)

  def step(
    self,
    last_id_B: Array,
    document_B: Array,
    cache: EntropyCache,
    active_B: Array,
  ) -> tuple[EntropyOutput, EntropyCache]:
    """Predicts the next id of each row, before it is seen.

    Args:
      last_id_B: [B] int32, the id before it; anything if it is the first of its
        document: the model sees that in the cache and is fed BOS.
      document_B: [B] int32, document of the id that is predicted.
      cache: From `init_cache`, `prefill` or the step before.
      active_B: [B] bool, rows to predict an id of. Of the others the cache
        stays as it is and the prediction means nothing.

    Returns:
      [B] predictions, NaN beyond the capacity of a model without window, and
      the cache.
    """
    is_first_B = document_B != cache_lib.last_group(cache.stack)
    fed_B = jnp.where(is_first_B, self.num_ids + Special.BOS, last_id_B)
    x_BD, stack = self.stack.step(
      self.embed(fed_B), document_B, cache.stack, active_B
    )
    y_BD, gaussian_stack = self._for_gaussian(x_BD), None
    if self._has_gaussian_stack:
      y_BD, gaussian_stack = self.gaussian_stack.step(
        y_BD, document_B, cache.gaussian_stack, active_B
      )
    return self.predict(x_BD, y_BD), EntropyCache(stack, gaussian_stack)

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

  def predict(self, x: Array, y: Array) -> EntropyOutput:
    """The heads alone.

    Args:
      x: [..., D] states of the stack.
      y: [..., D] states before the Gaussian head; not read without one.

    Returns:
      [...] predictions.
    """
    logits = self.head(x)
    if self.heads.tie_to_embedding:
      logits = self.embed.attend(logits) * self.d_model**-0.5
    return EntropyOutput(
      logits=logits.astype(jnp.float32),
      mixture=self.gaussian_head(y) if self.heads.gaussian_components else None,
    )

  @property
  def _has_gaussian_stack(self) -> bool:
    return self.heads.gaussian_components > 0 and self.heads.gaussian_layers > 0

  def _fed(self, ids_BS: Array, document_BS: Array) -> Array:
    fed_BS = layers.shift_right(
      ids_BS, document_starts(document_BS), self.num_ids + Special.BOS
    )
    return self.embed(fed_BS)

  def _for_gaussian(self, x: Array) -> Array:
    return lax.stop_gradient(x) if self.heads.gaussian_detach else x


def _filtered(output: EntropyOutput, heads: EntropyHeadsConfig) -> Array:
  return sampling.filter_logits(
    output.logits,
    temperature=heads.temperature,
    top_k=heads.top_k,
    top_p=heads.top_p,
  )
