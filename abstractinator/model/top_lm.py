"""Language model over the codes of the top level."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.config import TopLMConfig
from abstractinator.model import layers
from abstractinator.model.transformer import Stack, empty_cache
from abstractinator.model.vocabulary import ChooseDigit
from abstractinator.ops import digits as digits_lib
from abstractinator.ops.cache import Cache
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segmentation import document_starts
from abstractinator.types import Array


class CodeHead(nn.Module):
  """Head for codes: p(code | x) = product over m of p(digit m | x, digits < m).

  Each stage is a softmax over its own digits, so that the probabilities of all
  codes that are not forbidden add up to 1. Stage 0 is linear in the state x;
  stage m > 0 is linear in silu(mix_m(x + sum over i < m of told_i(digit i))).
  The hidden layer is needed: if the digits before were added to the scores
  alone, as residual conditioning does, a digit would say the same about the
  next one whatever the state.

  Attributes:
    stage_sizes: Number of values of each digit, M of them.
    forbidden: Digits of stage 0 that no code has.
    d_model: Width of the state, Y.
    dtype: Type of activations and matrix products; parameters are float32.

  Parameters:
    told_0/embedding and so on: Vectors of the digits of all stages but the
      last, [K, Y].
    mix_1/kernel and so on: Hidden layers of all stages but the first, [Y, Y].
    logits_0/kernel and so on: Output layers of all stages, [Y, K].
  """

  stage_sizes: tuple[int, ...]
  forbidden: tuple[int, ...]
  d_model: int
  dtype: jnp.dtype

  def setup(self) -> None:
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

  def __call__(
    self, x: Array, digits_M: Array, base: Array | None = None
  ) -> tuple[Array, ...]:
    """Computes the logits of every digit, given the true digits before it.

    Args:
      x: States, [..., Y].
      digits_M: Digits of the codes that follow, [..., M] int32.
      base: Logits that those of stage 0 add to, [..., K] float32; None for 0.

    Returns:
      Logits of each stage, M arrays [..., K] float32; -inf where forbidden.
    """
    return self._run(x, lambda m, _: digits_M[..., m], base)[0]

  def decode(
    self, x: Array, choose: ChooseDigit, base: Array | None = None
  ) -> Array:
    """Chooses codes, each digit given the digits chosen before it.

    Args:
      x: States, [..., Y].
      choose: Function that chooses the digits of a stage by their logits.
      base: Logits that those of stage 0 add to, [..., K] float32; None for 0.

    Returns:
      Digits, [..., M] int32.
    """
    return jnp.stack(self._run(x, choose, base)[1], axis=-1)

  def _run(
    self, x: Array, choose: ChooseDigit, base: Array | None
  ) -> tuple[tuple[Array, ...], list[Array]]:
    """Returns the logits and the chosen digits of each stage."""
    logits: list[Array] = []
    digits: list[Array] = []
    y, told = x, jnp.zeros((), self.dtype)
    for m, head in enumerate(self.logits):
      logits_K = head(y).astype(jnp.float32)
      if m == 0 and base is not None:
        logits_K += base
      if m == 0 and self.forbidden:
        logits_K = logits_K.at[..., jnp.array(self.forbidden)].set(-jnp.inf)
      logits.append(logits_K)
      digits.append(choose(m, logits_K))
      if m < len(self.told):
        told += self.told[m](digits[-1])
        y = nn.silu(self.mix[m](x + told))
    return tuple(logits), digits


@flax.struct.dataclass
class CodePrior:
  """Prediction by the entropy model of the ids that open segments.

  No gradient reaches the entropy model through it.

  Attributes:
    states: States that these ids are predicted from, [..., D].
    logits: Log-probability of the id that the segment of each code opens with,
      [..., K] float32, see `Quantizer.first_id_logits`; None where codes do not
      tell it.
  """

  states: Array
  logits: Array | None


@flax.struct.dataclass
class CodeSequence:
  """Codes of rows of packed documents.

  Attributes:
    codes_BP: Codes, [B, P] int32; arbitrary in empty slots.
    vectors_BPD: Codes as vectors, [B, P, D].
    document_BP: Document of each code in its row, [B, P] int32; -1 in empty
      slots, which only end a row.
    is_end_BP: True for the last code of a document, [B, P] bool; a document
      that the row cuts off has no such code.
    segments_BPD: Segments as vectors before quantization, [B, P, D], with a
      gradient to the encoder; None where there are only codes.
    prior: Prediction of the first id of each segment, [B, P]; None without
      `top_lm.base`.
  """

  codes_BP: Array
  vectors_BPD: Array
  document_BP: Array
  is_end_BP: Array
  segments_BPD: Array | None = None
  prior: CodePrior | None = None


@flax.struct.dataclass
class CodeSequenceOutput:
  """Predictions of codes and of the ends of documents.

  Attributes:
    logits: Logits of the digits of each code, given the codes before it in its
      document and the digits before, M arrays [B, P, K] float32; None with mode
      'continuous'.
    vectors_BPD: Predicted vector of each code, given the codes before it, [B,
      P, D] float32; None with mode 'discrete'.
    end_logits_BP: Log-odds that the document ends after the code, given it and
      the codes before it, [B, P] float32.
    states_BPY: States after the codes before, from which the codes are
      predicted, [B, P, Y].
  """

  logits: tuple[Array, ...] | None
  vectors_BPD: Array | None
  end_logits_BP: Array
  states_BPY: Array


class CodeSequenceTransformer(nn.Module):
  """Top language model: predicts the codes of a document, and its end.

  The state after a code decides whether the document ends there, and if not,
  which code comes next; a learned state opens each document, which has at least
  one code:

    p(codes) = p(code 0) * product of p(not the end | codes so far) *
      p(next code | codes so far), * p(the end | all codes)

  This adds up to 1 over all sequences, and needs no slot for an end symbol.

  With mode 'discrete' a code is predicted digit by digit. With 'continuous' its
  vector is predicted, and generation takes the nearest code. The quantizer is
  not a part of this model, which is given vectors.

  With `inputs='codes'` it reads the vectors of codes, which get no gradient
  unless they are embeddings that decide nothing about codes.
  With 'segments' it reads the vectors of segments before quantization, and its
  gradient reaches the encoder: a code need not say what the decoded text tells.

  With `base='entropy_model'` it builds on the entropy model, which has read all
  ids before: the state that predicts the first id of a segment is added to the
  one that predicts its code, and where codes tell the first ids of segments,
  their logits are those of these ids plus a learned difference.

  Attributes:
    config: Mode and sizes.
    d_level: Width of the vectors of codes, D.
    stage_sizes: Number of values of each digit of a code, M of them.
    forbidden: Digits of stage 0 that no code has.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.
    moves_codes: Whether vectors of codes get a gradient.

  Parameters:
    segment_norm/scale: [D], with `inputs='segments'` only.
    project/kernel: Map from vectors to the stack, [D, Y].
    stack: Parameters of a `Stack`.
    start: State before the first code, [Y] float32.
    prior/kernel: Map from the states of the entropy model, [D, Y]; with
      `base='entropy_model'` only.
    code_head: Parameters of a `CodeHead`, with mode 'discrete' only.
    vector_head/kernel: Map from states to vectors, [Y, D], with mode
      'continuous' only.
    end_head/kernel: Map from states to log-odds of the end, [Y, 1].
  """

  config: TopLMConfig
  d_level: int
  stage_sizes: tuple[int, ...]
  forbidden: tuple[int, ...]
  implementation: Implementations
  dtype: jnp.dtype
  moves_codes: bool = False

  def setup(self) -> None:
    c, width = self.config, self.config.d_model
    if c.inputs == 'segments':
      self.segment_norm = layers.RMSNorm(self.dtype)
    self.project = nn.Dense(width, use_bias=False, dtype=self.dtype)
    self.stack = Stack(c.stack, width, self.implementation, self.dtype)
    # As long as the states it stands for, which a norm makes.
    self.start = self.param('start', nn.initializers.normal(1.0), (width,))
    if c.base == 'entropy_model':
      self.prior = nn.Dense(width, use_bias=False, dtype=self.dtype)
    if c.mode == 'discrete':
      self.code_head = CodeHead(
        self.stage_sizes, self.forbidden, width, self.dtype
      )
    else:
      self.vector_head = nn.Dense(
        self.d_level, use_bias=False, dtype=self.dtype
      )
    self.end_head = layers.logits(1, self.dtype)

  def __call__(self, sequence: CodeSequence) -> CodeSequenceOutput:
    """Predicts every code of every row, given the true codes before it."""
    is_read = self.config.inputs == 'segments'
    read_BPD = sequence.segments_BPD if is_read else sequence.vectors_BPD
    assert read_BPD is not None, 'there are only codes'
    state_BPY = self.stack(self._embed(read_BPD), sequence.document_BP)
    before_BPY = self.before(state_BPY, sequence.document_BP)
    is_discrete, prior = self.config.mode == 'discrete', sequence.prior
    return CodeSequenceOutput(
      logits=self.code_logits(before_BPY, prior, sequence.codes_BP)
      if is_discrete
      else None,
      vectors_BPD=None if is_discrete else self.next_vector(before_BPY, prior),
      end_logits_BP=self.end_logits(state_BPY),
      states_BPY=before_BPY,
    )

  @nn.nowrap
  def init_cache(self, batch_size: int, capacity: int) -> Cache:
    """Builds an empty cache for `prefill` and `step`; needs no parameters.

    Args:
      batch_size: Number of rows, B.
      capacity: Most codes that a row may come to, if there is no window.

    Returns:
      The cache.
    """
    c = self.config
    return empty_cache(
      c.stack, c.d_model, c.stack.window, batch_size, capacity, self.dtype
    )

  def prefill(
    self, vectors_BPD: Array, document_BP: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """Computes the states after given codes, and stores them for `step`.

    Args:
      vectors_BPD: Vectors of the codes or segments, [B, P, D].
      document_BP: Document of each code, [B, P] int32; -1 in empty slots, which
        only end a row.
      cache: Cache from `init_cache`; its content is replaced.

    Returns:
      The state after each code, [B, P, Y], and the cache.

    Raises:
      ValueError: If there is no window and rows are longer than the cache.
    """
    return self.stack.prefill(self._embed(vectors_BPD), document_BP, cache)

  def step(
    self, vectors_BD: Array, document_B: Array, cache: Cache, active_B: Array
  ) -> tuple[Array, Cache]:
    """Computes the state after one more code of each row.

    Args:
      vectors_BD: Vectors of the codes or segments, [B, D].
      document_B: Document of each code, [B] int32.
      cache: Cache from `init_cache`, `prefill` or the step before.
      active_B: True for rows that have a code, [B] bool; see `Stack.step`.

    Returns:
      States, [B, Y], and the cache.
    """
    return self.stack.step(self._embed(vectors_BD), document_B, cache, active_B)

  def start_state(self, batch_size: int) -> Array:
    """Returns the state before the first code of a document, [B, Y]."""
    start_Y = self.start.astype(self.dtype)
    return jnp.broadcast_to(start_Y, (batch_size, self.config.d_model))

  def before(self, state_BPY: Array, document_BP: Array) -> Array:
    """Returns the states from which codes are predicted.

    Args:
      state_BPY: State after each code, [B, P, Y].
      document_BP: Document of each code, [B, P] int32; -1 in empty slots.

    Returns:
      [B, P, Y].
    """
    before_BPY = jnp.pad(state_BPY, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    start_Y = self.start.astype(self.dtype)
    is_first_BP1 = document_starts(document_BP)[..., None]
    return jnp.where(is_first_BP1, start_Y, before_BPY)

  def end_logits(self, state: Array) -> Array:
    """Computes log-odds that documents end after states, [..., Y] to [...]."""
    return self.end_head(state)[..., 0].astype(jnp.float32)

  def code_logits(
    self, state: Array, prior: CodePrior | None, codes: Array
  ) -> tuple[Array, ...]:
    """Computes the logits of the digits of the codes after states.

    Args:
      state: States after the codes before, [..., Y].
      prior: Prediction of the first ids of the segments, [...]; None without
        `base`.
      codes: The codes, [...] int32; a digit is given those before it.

    Returns:
      Logits of each digit, M arrays [..., K] float32.
    """
    return self.code_head(
      self._informed(state, prior),
      digits_lib.decompose(codes, self.stage_sizes),
      None if prior is None else prior.logits,
    )

  def draw_code(
    self, state: Array, prior: CodePrior | None, choose: ChooseDigit
  ) -> Array:
    """Chooses the codes after states, digit by digit.

    Args:
      state: States after the codes before, [..., Y].
      prior: Prediction of the first ids of the segments, [...]; None without
        `base`.
      choose: Function that chooses the digits of a stage by their logits.

    Returns:
      Codes, [...] int32.
    """
    digits_M = self.code_head.decode(
      self._informed(state, prior),
      choose,
      None if prior is None else prior.logits,
    )
    return digits_lib.compose(digits_M, self.stage_sizes)

  def next_vector(self, state: Array, prior: CodePrior | None = None) -> Array:
    """Predicts the vectors of the codes after states.

    Args:
      state: States after the codes before, [..., Y].
      prior: Prediction of the first ids of the segments, [...]; None without
        `base`.

    Returns:
      [..., D] float32.

    Raises:
      ValueError: If the mode is 'discrete'.
    """
    if self.config.mode == 'discrete':
      raise ValueError("top_lm.mode: got 'discrete', allowed: 'continuous'")
    return self.vector_head(self._informed(state, prior)).astype(jnp.float32)

  def _informed(self, state: Array, prior: CodePrior | None) -> Array:
    """Adds what the entropy model knows to states, [..., Y]."""
    return state if prior is None else state + self.prior(prior.states)

  def _embed(self, vectors: Array) -> Array:
    if self.config.inputs == 'segments':
      return self.project(self.segment_norm(vectors))
    return self.project(
      vectors if self.moves_codes else lax.stop_gradient(vectors)
    )
