"""The language model over the codes of the top level."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.config.top_lm import TopLMConfig
from abstractinator.model import layers
from abstractinator.model.transformer import Stack
from abstractinator.ops import digits as digits_lib
from abstractinator.ops import sampling
from abstractinator.ops.cache import Cache
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segmentation import document_starts
from abstractinator.types import Array


class CodeHead(nn.Module):
  """p(code | state), the product of p(digit | state, digits before it).

  Every stage is a softmax over its own digits, so that the probabilities of
  all codes that are not forbidden add up to 1. Stage 0 is linear in the state.
  A later one is told the digits before it by vectors added to the state, with
  a hidden layer behind: added to the scores alone, as residual conditioning
  does, a digit would say the same about the next one whatever the state.

  Attributes:
    stage_sizes: Values of each digit, M of them.
    forbidden: Digits of stage 0 that no code has.
    d_model: Y, width of the state.
    dtype: Compute type.

  Parameters:
    told_0/embedding: [K, Y] and so on, of the digits of all stages but the
      last.
    mix_1/kernel: [Y, Y] and so on, of all stages but the first.
    logits_0/kernel: [Y, K] and so on.
  """

  stage_sizes: tuple[int, ...]
  forbidden: tuple[int, ...]
  d_model: int
  dtype: jnp.dtype

  def setup(self):
    sizes, stages = self.stage_sizes, range(len(self.stage_sizes))
    self.told = [
      layers.embed(sizes[m], self.d_model, self.dtype, name=f'told_{m}')
      for m in stages[:-1]
    ]
    self.mix = [
      nn.Dense(self.d_model, use_bias=False, dtype=self.dtype, name=f'mix_{m}')
      for m in stages[1:]
    ]
    self.logits = [
      layers.logits(sizes[m], self.dtype, name=f'logits_{m}') for m in stages
    ]

  def __call__(self, x: Array, digits_M: Array) -> tuple[Array, ...]:
    """Scores of every digit, given the true ones before it.

    Args:
      x: [..., Y], states.
      digits_M: [..., M] int32, digits of the codes that follow.

    Returns:
      M arrays [..., K] float32, for a softmax each; -inf where forbidden.
    """
    return self._run(x, lambda m, _: digits_M[..., m])[0]

  def decode(self, x: Array, choose: Callable[[int, Array], Array]) -> Array:
    """Codes, each digit chosen in the light of those before it.

    Args:
      x: [..., Y], states.
      choose: From a stage and its logits [..., K] to digits [...] int32.

    Returns:
      [..., M] int32, digits.
    """
    return jnp.stack(self._run(x, choose)[1], axis=-1)

  def _run(self, x, choose):
    told, logits, digits = 0, [], []
    for m, head in enumerate(self.logits):
      y = nn.silu(self.mix[m - 1](x + told)) if m else x
      logits_K = head(y).astype(jnp.float32)
      if m == 0 and self.forbidden:
        logits_K = logits_K.at[..., jnp.array(self.forbidden)].set(-jnp.inf)
      logits.append(logits_K)
      digits.append(choose(m, logits_K))
      if m < len(self.told):
        told += self.told[m](digits[-1])
    return tuple(logits), digits


@flax.struct.dataclass
class CodeSequence:
  """Codes of rows of packed documents.

  Attributes:
    codes_BP: [B, P] int32; arbitrary in empty slots.
    vectors_BPD: [B, P, D], the codes as vectors.
    document_BP: [B, P] int32, which document of its row a code belongs to; -1
      in empty slots, which only end a row.
    is_end_BP: [B, P] bool, the code is the last of its document. One that the
      row cuts off has no such code.
  """

  codes_BP: Array
  vectors_BPD: Array
  document_BP: Array
  is_end_BP: Array


@flax.struct.dataclass
class CodeSequenceOutput:
  """Predictions of codes and of the ends of documents.

  Attributes:
    logits: M arrays [B, P, K] float32, of the digits of each code, given the
      codes before it in its document and the digits before; None if continuous.
    vectors_BPD: [B, P, D] float32, of each code, given the codes before it;
      None if discrete.
    end_logits_BP: [B, P] float32, log-odds that the document ends after the
      code, given it and those before it.
  """

  logits: tuple[Array, ...] | None
  vectors_BPD: Array | None
  end_logits_BP: Array


class CodeSequenceTransformer(nn.Module):
  """Predicts the codes of a document, each from those before it, and its end.

  The state after a code says whether the document ends there, and if not, what
  comes next; a learned state opens each document, which has at least one code:

    p(codes) = p(code 0) * product of p(not the end | codes so far) *
      p(next code | codes so far), * p(the end | all codes)

  This adds up to 1 over all sequences, and needs no slot for an end symbol.

  With mode 'discrete' a code is predicted digit by digit. With 'continuous' its
  vector is predicted, and whoever generates looks up the nearest code, with
  `read_only`. The quantizer is not a part of the model: it is given vectors,
  and no gradient reaches them.

  Attributes:
    config: Mode and sizes.
    d_level: D, width of the vectors of codes.
    stage_sizes: Values of each digit of a code, M of them.
    forbidden: Digits of stage 0 that no code has.
    implementation: Of the attention op.
    dtype: Compute type.

  Parameters:
    project/kernel: [D, Y], from vectors to the stack.
    stack: See `Stack`.
    start: [Y] float32, the state before the first code.
    code_head: See `CodeHead`; discrete only.
    vector_head/kernel: [Y, D]; continuous only.
    end_head/kernel: [Y, 1].
  """

  config: TopLMConfig
  d_level: int
  stage_sizes: tuple[int, ...]
  forbidden: tuple[int, ...]
  implementation: Implementations
  dtype: jnp.dtype

  def setup(self):
    c, width = self.config, self.config.d_model
    self.project = nn.Dense(width, use_bias=False, dtype=self.dtype)
    self.stack = self._make_stack()
    # As long as the states it stands for, which a norm makes.
    self.start = self.param('start', nn.initializers.normal(1.0), (width,))
    if c.mode == 'discrete':
      self.code_head = CodeHead(
        self.stage_sizes, self.forbidden, width, self.dtype
      )
    else:
      self.vector_head = nn.Dense(
        self.d_level, use_bias=False, dtype=self.dtype
      )
    self.end_head = layers.logits(1, self.dtype)

  @nn.nowrap
  def _make_stack(self, **kwargs: Any) -> Stack:
    c = self.config
    return Stack(c.stack, c.d_model, self.implementation, self.dtype, **kwargs)

  def __call__(self, sequence: CodeSequence) -> CodeSequenceOutput:
    """Predicts every code of every row, given the true ones before it."""
    state_BPY = self.stack(
      self._embed(sequence.vectors_BPD), sequence.document_BP
    )
    before_BPY = jnp.pad(state_BPY, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    is_first_BP = document_starts(sequence.document_BP)
    before_BPY = jnp.where(is_first_BP[..., None], self._start(), before_BPY)
    is_discrete = self.config.mode == 'discrete'
    return CodeSequenceOutput(
      logits=self.code_head(
        before_BPY, digits_lib.decompose(sequence.codes_BP, self.stage_sizes)
      )
      if is_discrete
      else None,
      vectors_BPD=None if is_discrete else self.next_vector(before_BPY),
      end_logits_BP=self.end_logits(state_BPY),
    )

  @nn.nowrap
  def init_cache(self, batch_size: int, capacity: int) -> Cache:
    """An empty cache for `prefill` and `step`; see `Stack.init_cache`."""
    # Has no parent, else it would become a part of the module that calls.
    stack = self._make_stack(parent=None)
    return stack.init_cache(batch_size, capacity, self.dtype)

  def prefill(
    self, vectors_BPD: Array, document_BP: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """States after codes that are there already.

    Args:
      vectors_BPD: [B, P, D], vectors of the codes.
      document_BP: [B, P] int32, -1 in empty slots, which only end a row.
      cache: From `init_cache`; what else it held is gone.

    Returns:
      [B, P, Y], the state after each code, and the cache.

    Raises:
      ValueError: See `Stack.prefill`.
    """
    return self.stack.prefill(self._embed(vectors_BPD), document_BP, cache)

  def step(
    self, vectors_BD: Array, document_B: Array, cache: Cache, active_B: Array
  ) -> tuple[Array, Cache]:
    """The state after one more code of each row.

    Args:
      vectors_BD: [B, D], vectors of the codes.
      document_B: [B] int32, documents they belong to.
      cache: From `init_cache`, `prefill` or the step before.
      active_B: [B] bool, rows that have a code; see `Stack.step`.

    Returns:
      [B, Y], and the cache.
    """
    return self.stack.step(self._embed(vectors_BD), document_B, cache, active_B)

  def start_state(self, batch_size: int) -> Array:
    """The state before the first code of a document, [B, Y]."""
    return jnp.broadcast_to(self._start(), (batch_size, self.config.d_model))

  def end_logits(self, state: Array) -> Array:
    """Log-odds that a document ends after states [..., Y], [...] float32."""
    return self.end_head(state)[..., 0].astype(jnp.float32)

  def next_vector(self, state: Array) -> Array:
    """Vectors after states [..., Y], [..., D] float32; continuous only."""
    self._require_mode('continuous')
    return self.vector_head(state).astype(jnp.float32)

  def next_code(
    self,
    key: Array,
    state: Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
  ) -> Array:
    """Draws codes, digit by digit; discrete only.

    Args:
      key: Of jax.random.
      state: [..., Y], states after the codes before.
      temperature: See `ops.sampling.filter_logits`, as the others; of the
        digits of each stage. 0 takes the most likely one.
      top_k: Digits of a stage that are kept; 0 for all.
      top_p: Their probability together; 1 for all.
      min_p: Least probability, relative to the most likely digit.

    Returns:
      [...] int32 codes.

    Raises:
      ValueError: If the mode is continuous or a filter out of its range.
    """
    self._require_mode('discrete')

    def choose(stage, logits):
      filtered = sampling.filter_logits(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
      )
      return sampling.sample(jax.random.fold_in(key, stage), filtered)

    digits_M = self.code_head.decode(state, choose)
    return digits_lib.compose(digits_M, self.stage_sizes)

  def _embed(self, vectors):
    return self.project(lax.stop_gradient(vectors))

  def _start(self):
    return self.start.astype(self.dtype)

  def _require_mode(self, mode):
    if self.config.mode != mode:
      raise ValueError(f'mode: got {self.config.mode!r}, allowed: {mode}')
