"""Entropy model of a level: a small language model over the level's ids.

The entropy of its prediction of each id, made from the ids before it, decides
where segments begin.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax
from optax.losses import (
  softmax_cross_entropy_with_integer_labels as cross_entropy,
)

from abstractinator.config import (
  EntropyHeadsConfig,
  LevelConfig,
  StackConfig,
)
from abstractinator.model import layers
from abstractinator.model.transformer import Stack
from abstractinator.model.vocabulary import Codebooks, Vocabulary
from abstractinator.ops import cache as cache_lib
from abstractinator.ops import gaussian, sampling
from abstractinator.ops.cache import Cache
from abstractinator.ops.gaussian import Mixture
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segmentation import document_starts
from abstractinator.types import Array, Special


@flax.struct.dataclass
class EntropyOutput:
  """Predictions of ids, each made from the ids before it in its document.

  Attributes:
    logits: Logits of the id, [..., V] float32; if ids are codes, of their first
      digit.
    mixture: Mixture of Gaussians that predicts the embedding of the id; None
      without a Gaussian head.
    further_logits: Logits of each further digit of a code, given the best
      digits before it, M - 1 arrays [..., K] float32; empty for bytes.
    states: States that ids are predicted from, [..., D].
  """

  logits: Array
  mixture: Mixture | None
  states: Array
  further_logits: tuple[Array, ...] = ()


@flax.struct.dataclass
class Prior:
  """Prediction of ids without their codes, on which other parts build.

  No gradient reaches the entropy model through it.

  Attributes:
    states: States that the ids are predicted from, [..., D].
    logits: Logits of the ids, [..., V] float32.
  """

  states: Array
  logits: Array

  @classmethod
  def of(cls, output: EntropyOutput) -> 'Prior':
    """Returns the prior that an entropy model's output is."""
    return cls(*lax.stop_gradient((output.states, output.logits)))


def predictive_entropy_bits(
  output: EntropyOutput, heads: EntropyHeadsConfig
) -> Array:
  """Computes the entropy of predictions, which decides where segments begin.

  Args:
    output: Predictions of any shape.
    heads: The head whose distribution counts, and the filters applied to it.

  Returns:
    [...] float32. Of logits: bits, finite under every filter. For codes of
    several digits it is the sum over digits, each given the most likely digits
    before it: the entropy of the code if digits are independent, else its value
    along the most likely path. Of the Gaussian head: bits per dimension, see
    `ops.gaussian.entropy_bits`.
  """
  if heads.source == 'gaussian':
    return gaussian.entropy_bits(_mixture(output), heads.temperature)
  filters = sampling.Filters(heads.temperature, heads.top_k, heads.top_p)
  return functools.reduce(
    operator.add,
    (
      sampling.entropy_bits(sampling.filter_logits(logits, filters))
      for logits in (output.logits, *output.further_logits)
    ),
  )


def _mixture(output: EntropyOutput) -> Mixture:
  if output.mixture is None:
    raise ValueError('entropy_heads.gaussian_components: got 0, allowed: >= 1')
  return output.mixture


class GaussianHead(nn.Module):
  """Mixture density head: a mixture of J diagonal Gaussians per vector.

  Log weights, means and log variances are linear maps of the state:
  p(y | x) = sum over j of softmax(weight x)_j N(y; mean_j x, variance_j x).

  Attributes:
    components: Number of Gaussians, J.
    log_variance_min: Lower bound to which log variances are clipped.
    log_variance_max: Upper bound to which log variances are clipped.
    dtype: Type of activations and matrix products; parameters are float32.

  Parameters:
    mean/kernel, log_variance/kernel: [D, J, D], with bias [J, D].
    weight/kernel: [D, J], with bias [J]; absent if J is 1.

  Source: Bishop, Mixture Density Networks, 1994.
  """

  components: int
  log_variance_min: float
  log_variance_max: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Mixture:
    """Returns the mixtures of states, [..., D], over vectors of width D."""
    shape = (self.components, x.shape[-1])

    def project(
      name: str, features: int | tuple[int, ...], variance: float
    ) -> Array:
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


@flax.struct.dataclass
class EntropyCache:
  """KV caches of an entropy model.

  Attributes:
    stack: Cache of the stack.
    gaussian_stack: Cache of the stack before the Gaussian head; None without
      one.
  """

  stack: Cache
  gaussian_stack: Cache | None


class EntropyModel(nn.Module):
  """Predicts each id from the ids before it in its document.

  If ids are codes of the level below, they are embedded and predicted digit by
  digit with the codebooks of that level (see `Vocabulary`), which every call is
  given and which get no gradient; for a quantizer without codebooks the tables
  are parameters here.

  Attributes:
    config: Sizes of the stack.
    heads: Sizes of the heads on the stack.
    d_model: Width of the states, D.
    num_ids: Number of ordinary ids; the special ids follow them.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.
    child: Config of the level below, whose codes the ids are; None for bytes.

  Parameters:
    embed/embedding: Embeddings of bytes, [V, D].
    stack: Parameters of a `Stack`.
    head/kernel: Map from states to logits of bytes, [D, V]; with
      `tie_to_embedding` to the space of embeddings, [D, D].
    vocabulary: Parameters of a `Vocabulary`, if ids are codes.
    gaussian_stack: Parameters of the `Stack` before the Gaussian head, with
      `gaussian_layers` > 0.
    gaussian_head: Parameters of a `GaussianHead`, with `gaussian_components`
      > 0.
  """

  config: StackConfig
  heads: EntropyHeadsConfig
  d_model: int
  num_ids: int
  implementation: Implementations
  dtype: jnp.dtype
  child: LevelConfig | None = None

  def setup(self) -> None:
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
    if self._has_gaussian_stack:
      self.gaussian_stack = Stack(
        dataclasses.replace(self.config, num_layers=h.gaussian_layers),
        self.d_model,
        self.implementation,
        self.dtype,
      )

  @property
  def _has_gaussian_stack(self) -> bool:
    return self.heads.gaussian_components > 0 and self.heads.gaussian_layers > 0

  def __call__(
    self,
    ids_BS: Array,
    document_BS: Array,
    codebooks: Codebooks | None = None,
  ) -> EntropyOutput:
    """Predicts each id from the ids before it in its document.

    Args:
      ids_BS: Ids, [B, S] int32.
      document_BS: Document of each id, [B, S] int32; -1 on padding.
      codebooks: Codebooks of the level below, if ids are its codes.

    Returns:
      Predictions, [B, S].
    """
    x_BSD = self.stack(self._fed(ids_BS, document_BS, codebooks), document_BS)
    y_BSD = self._for_gaussian(x_BSD)
    if self._has_gaussian_stack:
      y_BSD = self.gaussian_stack(y_BSD, document_BS)
    return self.predict(x_BSD, y_BSD, codebooks)

  def init_cache(
    self, batch_size: int, capacity: int, dtype: jnp.dtype
  ) -> EntropyCache:
    """Builds an empty cache for `prefill` and `step`.

    Args:
      batch_size: Number of rows, B.
      capacity: Most predictions per row of a model without window (see
        `Stack.init_cache`); the id after n ids is the (n + 1)-st prediction.
      dtype: Type of keys and values, usually the compute type.

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
    """Predicts whole rows as the call does, and stores them for `step`.

    The predictions are those of the given ids. The id after a row's last is
    predicted by the first `step`, which is fed that last id.

    Args:
      ids_BS: Ids, [B, S] int32.
      document_BS: Document of each id, [B, S] int32; -1 on padding, which only
        ends a row.
      cache: Cache from `init_cache`; its content is replaced.
      codebooks: Codebooks of the level below, if ids are its codes.

    Returns:
      Predictions, [B, S], and the cache.

    Raises:
      ValueError: If there is no window and rows are longer than the cache.
    """
    return self._run(
      lambda stack, x, cache: stack.prefill(x, document_BS, cache),
      self._fed(ids_BS, document_BS, codebooks),
      cache,
      codebooks,
    )

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
      last_id_B: Id before the predicted one, [B] int32. Ignored if the
        predicted id is the first of its document, which the cache shows: then
        the model is fed BOS.
      document_B: Document of the predicted id, [B] int32.
      cache: Cache from `init_cache`, `prefill` or the step before.
      active_B: True for rows to predict an id of, [B] bool. In other rows the
        cache stays as it is and the prediction is meaningless.
      codebooks: Codebooks of the level below, if ids are its codes.

    Returns:
      Predictions, [B], NaN beyond the capacity of a model without window, and
      the cache.
    """
    is_first_B = document_B != cache_lib.last_group(cache.stack)
    fed_B = jnp.where(is_first_B, self.num_ids + Special.BOS, last_id_B)
    return self._run(
      lambda stack, x, cache: stack.step(x, document_B, cache, active_B),
      self.embed(fed_B, codebooks),
      cache,
      codebooks,
    )

  def embed(self, ids: Array, codebooks: Codebooks | None = None) -> Array:
    """Returns the vectors of ids [...], [..., D] of the compute type."""
    if self.child is None:
      return self.table(ids)
    return self.vocabulary.embed(ids, codebooks)

  def nats(
    self,
    ids: Array,
    output: EntropyOutput,
    codebooks: Codebooks | None = None,
  ) -> Array:
    """Computes -log p of ids [...] in their predictions, [...] float32.

    It is infinite for padding among codes, which no prediction allows.
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
    """Computes -log density of the embeddings of ids, which get no gradient.

    Args:
      ids: Ids, [...] int32.
      output: Their predictions, with a mixture.
      codebooks: Codebooks of the level below, if ids are its codes.

    Returns:
      [...] float32, nats per dimension.
    """
    target_D = lax.stop_gradient(self.embed(ids, codebooks))
    return gaussian.nll_nats(_mixture(output), target_D)

  def _run(
    self,
    call: Callable[[Stack, Array, Cache], tuple[Array, Cache]],
    fed: Array,
    cache: EntropyCache,
    codebooks: Codebooks | None,
  ) -> tuple[EntropyOutput, EntropyCache]:
    """Runs the stacks, each with its cache by `call`, and the heads."""
    x, stack = call(self.stack, fed, cache.stack)
    y, gaussian_stack = self._for_gaussian(x), cache.gaussian_stack
    if gaussian_stack is not None:
      y, gaussian_stack = call(self.gaussian_stack, y, gaussian_stack)
    predicted = self.predict(x, y, codebooks)
    return predicted, EntropyCache(stack, gaussian_stack)

  def _fed(
    self, ids_BS: Array, document_BS: Array, codebooks: Codebooks | None
  ) -> Array:
    fed_BS = layers.shift_right(
      ids_BS, document_starts(document_BS), self.num_ids + Special.BOS
    )
    return self.embed(fed_BS, codebooks)

  def _for_gaussian(self, x: Array) -> Array:
    return lax.stop_gradient(x) if self.heads.gaussian_detach else x

  def predict(
    self, x: Array, y: Array, codebooks: Codebooks | None
  ) -> EntropyOutput:
    """Applies the heads to states.

    Args:
      x: States of the stack, [..., D].
      y: States for the Gaussian head, [..., D]; not read without one.
      codebooks: Codebooks of the level below, if ids are its codes.

    Returns:
      Predictions, [...].
    """
    mixture = self.gaussian_head(y) if self.heads.gaussian_components else None
    if self.child is not None:
      predicted = self.vocabulary.predict(x, None, codebooks)
      first, *further = predicted.logits
      return EntropyOutput(first, mixture, x, tuple(further))
    logits = self.head(x)
    if self.heads.tie_to_embedding:
      logits = self.table.attend(logits) * self.d_model**-0.5
    return EntropyOutput(logits.astype(jnp.float32), mixture, x)
