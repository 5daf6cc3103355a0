"""The small language model of a level, whose uncertainty cuts segments."""

import dataclasses

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.config import (
  EntropyHeadsConfig,
  LevelConfig,
  StackConfig,
)
from abstractinator.modules import layers
from abstractinator.modules.blocks import Stack
from abstractinator.modules.entropy_output import EntropyOutput
from abstractinator.modules.gaussian_head import GaussianHead
from abstractinator.modules.vocabulary import Codebooks, Vocabulary
from abstractinator.ops import cache as cache_lib
from abstractinator.ops import gaussian
from abstractinator.ops.cache import Cache
from abstractinator.ops.cross_entropy import cross_entropy
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segmentation import document_starts
from abstractinator.types import Array, Special


@flax.struct.dataclass
class EntropyCache:
  """What an entropy model remembers of each row.

  Attributes:
    stack: Of the stack.
    gaussian_stack: Of the one before the Gaussian head; None without.
  """

  stack: Cache
  gaussian_stack: Cache | None


class EntropyModel(nn.Module):
  """Predicts each id from those before it.

  Where ids are codes of another level, they are embedded and predicted digit by
  digit, with the codebooks of that level, which every call is given and which
  get no gradient; a quantizer without codebooks has tables here. See
  `Vocabulary`.

  Attributes:
    config: Sizes of the stack.
    heads: What stands on it.
    d_model: D.
    num_ids: Ordinary ids; the specials come after them.
    implementation: Of the attention op.
    dtype: Compute type.
    child: The level whose codes the ids are; None for bytes.

  Parameters:
    embed/embedding: [V, D], of bytes.
    stack: See `Stack`.
    head/kernel: [D, V], or with `tie_to_embedding` [D, D], from states to the
      space of embeddings; of bytes.
    vocabulary: See `Vocabulary`; of codes.
    gaussian_head: See `GaussianHead`, and gaussian_stack, before it: see
      `Stack`; with `gaussian_components` and `gaussian_layers` above 0 only.
  """

  config: StackConfig
  heads: EntropyHeadsConfig
  d_model: int
  num_ids: int
  implementation: Implementations
  dtype: jnp.dtype
  child: LevelConfig | None = None

  def setup(self):
    h, vocab = self.heads, self.num_ids + len(Special)
    self.stack = Stack(
      self.config, self.d_model, self.implementation, self.dtype
    )
    if self.child is None:
      self.table = layers.embed(vocab, self.d_model, self.dtype, name='embed')
      # Tied, a matrix stands between: without it the id that was fed, whose
      # embedding is part of the state, would be predicted from the first step
      # on.
      self.head = layers.logits(
        self.d_model if h.tie_to_embedding else vocab, self.dtype
      )
    else:
      self.vocabulary = Vocabulary(
        self.child.quantizer.stage_sizes,
        self.d_model,
        code_dim=self.child.codebook_width,
        distance='dot',
        residual_conditioning=True,
        dtype=self.dtype,
        has_tables=self.child.codebook_width is None,
        has_eos=False,
      )
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

  def __call__(
    self,
    ids_BS: Array,
    document_BS: Array,
    codebooks: Codebooks | None = None,
  ) -> EntropyOutput:
    """Predicts each id given the ids before it in its document.

    Args:
      ids_BS: [B, S] int32.
      document_BS: [B, S] int32, -1 on padding.
      codebooks: Of the child; see `Vocabulary`.

    Returns:
      [B, S] predictions.
    """
    fed_BSD = self._fed(ids_BS, document_BS, codebooks)
    x_BSD = self.stack(fed_BSD, document_BS)
    y_BSD = self._for_gaussian(x_BSD)
    if self._has_gaussian_stack:
      y_BSD = self.gaussian_stack(y_BSD, document_BS)
    return self.predict(x_BSD, y_BSD, codebooks)

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
    self,
    ids_BS: Array,
    document_BS: Array,
    cache: EntropyCache,
    codebooks: Codebooks | None = None,
  ) -> tuple[EntropyOutput, EntropyCache]:
    """The call, remembering every row for `step`.

    Its predictions are those of the ids given. Nothing is predicted yet of the
    id after a row's last: the first `step` does, and is fed that last id.

    Args:
      ids_BS: [B, S] int32.
      document_BS: [B, S] int32, -1 on padding, which only ends a row.
      cache: From `init_cache`; what else it held is gone.
      codebooks: As of a call.

    Returns:
      [B, S] predictions, and the cache.

    Raises:
      ValueError: If there is no window and rows are longer than the cache.
    """
    x_BSD, stack = self.stack.prefill(
      self._fed(ids_BS, document_BS, codebooks), document_BS, cache.stack
    )
    y_BSD, gaussian_stack = self._for_gaussian(x_BSD), None
    if self._has_gaussian_stack:
      y_BSD, gaussian_stack = self.gaussian_stack.prefill(
        y_BSD, document_BS, cache.gaussian_stack
      )
    predicted = self.predict(x_BSD, y_BSD, codebooks)
    return predicted, EntropyCache(stack, gaussian_stack)

  def step(
    self,
    last_id_B: Array,
    document_B: Array,
    cache: EntropyCache,
    active_B: Array,
    codebooks: Codebooks | None = None,
  ) -> tuple[EntropyOutput, EntropyCache]:
    """Predicts the next id of each row, before it is seen.

    Args:
      last_id_B: [B] int32, the id before it; anything if it is the first of its
        document: the model sees that in the cache and is fed BOS.
      document_B: [B] int32, document of the id that is predicted.
      cache: From `init_cache`, `prefill` or the step before.
      active_B: [B] bool, rows to predict an id of. Of the others the cache
        stays as it is and the prediction means nothing.
      codebooks: As of a call.

    Returns:
      [B] predictions, NaN beyond the capacity of a model without window, and
      the cache.
    """
    is_first_B = document_B != cache_lib.last_group(cache.stack)
    fed_B = jnp.where(is_first_B, self.num_ids + Special.BOS, last_id_B)
    x_BD, stack = self.stack.step(
      self.embed(fed_B, codebooks), document_B, cache.stack, active_B
    )
    y_BD, gaussian_stack = self._for_gaussian(x_BD), None
    if self._has_gaussian_stack:
      y_BD, gaussian_stack = self.gaussian_stack.step(
        y_BD, document_B, cache.gaussian_stack, active_B
      )
    predicted = self.predict(x_BD, y_BD, codebooks)
    return predicted, EntropyCache(stack, gaussian_stack)

  def embed(self, ids: Array, codebooks: Codebooks | None = None) -> Array:
    """Vectors of ids [...], [..., D] of the compute type."""
    if self.child is None:
      return self.table(ids)
    return self.vocabulary.embed(ids, codebooks)

  def nats(
    self,
    ids: Array,
    output: EntropyOutput,
    codebooks: Codebooks | None = None,
  ) -> Array:
    """-log p of ids [...] in their predictions, [...] float32.

    Infinite for padding among codes, which no prediction allows.
    """
    if self.child is None:
      return cross_entropy(output.logits, ids)
    told = self.vocabulary.predict(output.states, ids, codebooks)
    return self.vocabulary.nats(told, ids)

  def gaussian_nats(
    self,
    ids: Array,
    output: EntropyOutput,
    codebooks: Codebooks | None = None,
  ) -> Array:
    """-log density of the embeddings of ids, which get no gradient.

    Of predictions with a mixture; [...] float32, nats per dimension.
    """
    target_D = lax.stop_gradient(self.embed(ids, codebooks))
    return gaussian.nll_nats(output.mixture, target_D)

  def predict(
    self, x: Array, y: Array, codebooks: Codebooks | None = None
  ) -> EntropyOutput:
    """The heads alone, [...] predictions.

    Args:
      x: [..., D] states of the stack.
      y: [..., D] states before the Gaussian head; not read without one.
      codebooks: As of a call.
    """
    mixture = self.gaussian_head(y) if self.heads.gaussian_components else None
    if self.child is not None:
      predicted = self.vocabulary.predict(x, None, codebooks)
      first, *further = predicted.logits
      return EntropyOutput(first, mixture, tuple(further), states=x)
    logits = self.head(x)
    if self.heads.tie_to_embedding:
      logits = self.table.attend(logits) * self.d_model**-0.5
    return EntropyOutput(logits.astype(jnp.float32), mixture)

  @property
  def _has_gaussian_stack(self) -> bool:
    return self.heads.gaussian_components > 0 and self.heads.gaussian_layers > 0

  def _fed(self, ids_BS, document_BS, codebooks):
    fed_BS = layers.shift_right(
      ids_BS, document_starts(document_BS), self.num_ids + Special.BOS
    )
    return self.embed(fed_BS, codebooks)

  def _for_gaussian(self, x: Array) -> Array:
    return lax.stop_gradient(x) if self.heads.gaussian_detach else x
