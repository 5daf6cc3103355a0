"""Quantizers: vectors of segments to codes, and codes back to vectors.

`VectorQuantizer` takes the nearest entry of a codebook,
`ResidualVectorQuantizer` one entry of each of several codebooks, and
`FiniteScalarQuantizer` rounds each dimension. A code of M stages is one number
whose digits are the choices of the stages; see `ops.digits`.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.config import QuantizerConfig
from abstractinator.ops import codebook, fsq, stage_logits
from abstractinator.ops import digits as digits_lib
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.nearest_code import nearest_code
from abstractinator.ops.shards import by_rows
from abstractinator.types import Array


@flax.struct.dataclass
class QuantizerOutput:
  """Codes of the vectors of segments.

  P counts vectors here: U of them if a segment has several.

  Attributes:
    codes_BP: Codes, [B, P] int32 in 0..num_codes-1; arbitrary in empty slots.
    digits_BPM: Digit of each stage, [B, P, M] int32; see `ops.digits`.
    vectors_BPD: Codes as vectors, [B, P, D], with the gradient of the input
      (straight-through).
    distance_BP: Commitment loss: mean squared distance over C from the input to
      its code, summed over stages, [B, P] float32. It has a gradient to the
      input only, and is 0 without a codebook.
    codebook_distance_BP: Codebook loss: the same number with a gradient to the
      codebook only, [B, P] float32; 0 unless the codebook learns by gradient.
  """

  codes_BP: Array
  digits_BPM: Array
  vectors_BPD: Array
  distance_BP: Array
  codebook_distance_BP: Array


class Quantizer(nn.Module):
  """Base class of the quantizers, with the projections around the code space.

  Attributes:
    config: Kind, sizes and policies.
    d_model: Width of the vectors, D.
    implementation: Names of the implementations of the ops.
    dtype: Type of the projections and their products; all else is float32.
    max_length: Most ids of a segment, L; only a dictionary needs it.

  Parameters:
    down/kernel: Map to the code space, [D, C]; absent if `code_dim` is None,
      where C is D.
    up/kernel: Map from the code space, [C, D]; absent likewise.
  """

  config: QuantizerConfig
  d_model: int
  implementation: Implementations
  dtype: jnp.dtype
  max_length: int = 1

  def __call__(
    self, x_BPD: Array, is_valid_BP: Array, row_B: Array
  ) -> QuantizerOutput:
    """Quantizes vectors.

    Args:
      x_BPD: Vectors, [B, P, D].
      is_valid_BP: True for slots that count in statistics, [B, P] bool.
      row_B: Identity of each row, [B] int32; see `Batch`.

    Returns:
      Codes and their vectors.
    """
    raise NotImplementedError

  def codebooks(self) -> tuple[Array, ...] | None:
    """Returns the entries of each stage, M arrays [K, C] float32, or None."""
    raise NotImplementedError

  def lookup(self, codes_BP: Array) -> Array:
    """Returns the vectors of codes.

    Args:
      codes_BP: Codes, [B, P] int32 in 0..num_codes-1.

    Returns:
      [B, P, D] of the compute type.
    """
    raise NotImplementedError

  def spell(self, codes_BP: Array) -> Array | None:
    """Returns the segments of codes; None if codes alone do not tell them.

    They are those of `dictionary.spell`, [B, P, L + 1] int32.
    """
    return None

  def first_id_logits(self, logits_V: Array) -> Array | None:
    """Returns what predictions of first ids say about the codes of segments.

    Args:
      logits_V: Logits of the first ids of segments, [..., V] float32.

    Returns:
      Log-probability of the id that the segment of each code opens with, 0
      where it is open, [..., K] float32; None if codes do not tell it.
    """
    return None

  def soft_digits(self, x_BPD: Array, temperature: float) -> tuple[Array, ...]:
    """Assigns vectors to digits softly: softmax(-squared distance / t).

    A digit after the first is that of the residual which the nearest digits
    before it leave. Entries get no gradient.

    Args:
      x_BPD: Vectors, [B, P, D].
      temperature: Temperature t, in squared distances; with kind 'fsq' the
        distance of neighboring values is 1.

    Returns:
      Probabilities of the values of each digit, M arrays [B, P, K] float32.
    """
    raise NotImplementedError

  def expected(self, probabilities: tuple[Array, ...]) -> Array:
    """Returns the mean vector under probabilities of digits.

    Args:
      probabilities: Probabilities of each digit, M arrays [B, P, K] float32.

    Returns:
      [B, P, D] of the compute type.
    """
    raise NotImplementedError

  def setup_projections(self, width: int | None) -> None:
    """Builds the maps to a code space of `width` and back; None for no maps."""
    self.width = self.d_model if width is None else width
    self.is_projected = width is not None
    if self.is_projected:
      self.down = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
      self.up = nn.Dense(self.d_model, use_bias=False, dtype=self.dtype)

  def to_code_space(self, x_BPD: Array) -> Array:
    """Maps [B, P, D] to [B, P, C] float32, to unit vectors if `cosine`."""
    y_BPC = self.down(x_BPD) if self.is_projected else x_BPD
    y_BPC = by_rows(y_BPC).astype(jnp.float32)
    return codebook.unit(y_BPC) if self.config.cosine else y_BPC

  def to_model(self, y_BPC: Array) -> Array:
    """Maps [B, P, C] to [B, P, D] of the compute type.

    With `cosine`, vectors are made sqrt(C) long: as long as others are, or
    codes would say little beside the ids that a decoder reads.
    """
    if self.config.cosine:
      y_BPC = y_BPC * self.width**0.5
    y_BPC = y_BPC.astype(self.dtype)
    return by_rows(self.up(y_BPC)) if self.is_projected else y_BPC


def read_only(quantizer: Quantizer) -> Callable[..., Any]:
  """Returns a bound quantizer as a function that neither writes nor learns.

  Vectors that a top LM predicts find their codes through it without a trace in
  the statistics of the codebook, even while the collection `vq` is mutable.

  Args:
    quantizer: A bound quantizer.

  Returns:
    The `apply` of the quantizer with its variables in place: it takes the
    arguments of a call, or of the method named by `method=`. The variables get
    no gradient.
  """
  unbound, variables = quantizer.unbind()
  return functools.partial(unbound.apply, lax.stop_gradient(variables))


def _mean_square(x_BPC: Array) -> Array:
  return jnp.mean(jnp.square(x_BPC), axis=-1)


class VectorQuantizer(Quantizer):
  """Vector quantizer (VQ-VAE) in a space of C dimensions.

  With y = down(x) the code is the k that minimises |y - e_k|^2 over the entries
  e, and its vector is up(e_k). A small C makes the search cheap and keeps
  entries in use. The losses are the mean over C of (y - sg(e_k))^2, commitment,
  and of (sg(y) - e_k)^2, codebook, where sg stops the gradient. A codebook
  without gradient consists of moving averages of the inputs instead; see
  `ops.codebook`.

  Attributes:
    kmeans_step: Step whose vectors start the codebook, if it starts by k-means.

  Parameters:
    codebook/embedding: Entries, [K, C], if the codebook learns by gradient.

  Collections:
    vq: `state`, a `codebook.CodebookState`, if entries are moving averages. A
      forward pass with `vq` mutable adds to the sums of the step;
      `codebook.advance` turns them into the next codebook.

  Source: van den Oord et al., arXiv:1711.00937, equations 1 to 3 and appendix
    A.1.
  """

  kmeans_step: int = 0

  def setup(self) -> None:
    c = self.config
    self.setup_projections(c.code_dim)
    if c.has_learned_entries:
      self.codebook = nn.Embed(
        c.codebook_size, self.width, embedding_init=nn.initializers.normal(1.0)
      )
    else:
      self.state = self.variable('vq', 'state', self._initial_state)

  def _initial_state(self) -> codebook.CodebookState:
    c = self.config
    return codebook.initial_state(
      self.make_rng('params'),
      c.codebook_size,
      self.width,
      decay=c.decay,
      reset_interval_steps=c.reset_interval_steps,
      reset_after_steps=c.reset_after_steps,
      reset_usage=c.reset_usage,
      # An entry that is never chosen needs no new place.
      protected=c.forbidden + c.protected,
      kmeans_step=self.kmeans_step if c.start == 'kmeans' else None,
    )

  def __call__(
    self, x_BPD: Array, is_valid_BP: Array, row_B: Array
  ) -> QuantizerOutput:
    y_BPC = self.to_code_space(x_BPD)
    y_NC = lax.stop_gradient(y_BPC.reshape(-1, self.width))
    entries_KC = self.entries()
    codes_N = nearest_code(
      y_NC,
      lax.stop_gradient(entries_KC),
      implementation=self.implementation.nearest_code,
      forbidden=self.config.forbidden,
    )
    codes_BP = codes_N.reshape(is_valid_BP.shape)
    learns = self.config.has_learned_entries
    if not learns and self.is_mutable_collection('vq'):
      self._observe(y_NC, codes_N, is_valid_BP, row_B)
    entry_BPC = entries_KC[codes_BP]
    distance_BP = _mean_square(y_BPC - lax.stop_gradient(entry_BPC))
    return QuantizerOutput(
      codes_BP=codes_BP,
      digits_BPM=codes_BP[..., None],
      vectors_BPD=self.to_model(codebook.straight_through(y_BPC, entry_BPC)),
      distance_BP=distance_BP,
      codebook_distance_BP=_mean_square(lax.stop_gradient(y_BPC) - entry_BPC)
      if learns
      else jnp.zeros_like(distance_BP),
    )

  def _observe(
    self, y_NC: Array, codes_N: Array, is_valid_BP: Array, row_B: Array
  ) -> None:
    """Adds the vectors to the sums of the step; nothing at initialisation."""
    if self.is_initializing():
      return
    slots = is_valid_BP.shape[1]
    name_BP = row_B[:, None] * slots + jnp.arange(slots)
    self.state.value = codebook.observe(
      self.state.value,
      y_NC,
      codes_N,
      is_valid_BP.reshape(-1),
      name_BP.reshape(-1).astype(jnp.uint32),
    )

  def entries(self) -> Array:
    """Returns the codebook, [K, C] float32; unit vectors if `cosine`."""
    if self.config.has_learned_entries:
      entries_KC = self.codebook.embedding
    else:
      entries_KC = self.state.value.codebook_KC
    return codebook.unit(entries_KC) if self.config.cosine else entries_KC

  def soft_digits(self, x_BPD: Array, temperature: float) -> tuple[Array, ...]:
    (scored,) = stage_logits.stage_logits(
      self.to_code_space(x_BPD),
      (lax.stop_gradient(self.entries()),),
      None,
      residual_conditioning=False,
      distance='squared',
    ).logits
    if self.config.forbidden:
      scored = scored.at[..., jnp.array(self.config.forbidden)].set(-jnp.inf)
    return (jax.nn.softmax(scored / temperature),)

  def codebooks(self) -> tuple[Array, ...]:
    return (self.entries(),)

  def lookup(self, codes_BP: Array) -> Array:
    return self.to_model(self.entries()[codes_BP])

  def expected(self, probabilities: tuple[Array, ...]) -> Array:
    (p_BPK,) = probabilities
    return self.to_model(p_BPK @ self.entries())


class ResidualVectorQuantizer(Quantizer):
  """Residual vector quantizer: M stages of VQ in one space of C dimensions.

  With r_0 = down(x), stage m takes the entry e_m nearest to r_m and leaves
  r_(m+1) = r_m - e_m to the next. The vector of the code is up(e_0 + e_1 + ..);
  its gradient passes to the input straight through the sum, whatever the number
  of stages. The digit of stage 0 is the least significant.

  `forbidden`, `protected` and `cosine` concern stage 0: one forbidden digit
  forbids a code, and the residual of a unit vector has no fixed length.

  Parameters:
    stage0 and so on: Parameters of each stage, a `VectorQuantizer`.

  Source: Zeghidour et al., arXiv:2107.03312, section III.C.
  """

  def setup(self) -> None:
    c = self.config
    self.setup_projections(c.code_dim)
    first = dataclasses.replace(c, kind='vq', code_dim=None)
    other = dataclasses.replace(first, forbidden=(), protected=(), cosine=False)
    self.stages = [
      VectorQuantizer(
        other if stage else first,
        self.width,
        self.implementation,
        jnp.float32,
        # A stage starts once the one before it has.
        kmeans_step=stage,
        name=f'stage{stage}',
      )
      for stage in range(c.depth)
    ]

  def __call__(
    self, x_BPD: Array, is_valid_BP: Array, row_B: Array
  ) -> QuantizerOutput:
    y_BPC = rest_BPC = self.to_code_space(x_BPD)
    outputs = []
    for stage in self.stages:
      outputs.append(stage(rest_BPC, is_valid_BP, row_B))
      entry_BPC = stage.entries()[outputs[-1].codes_BP]
      rest_BPC = rest_BPC - lax.stop_gradient(entry_BPC)
    digits_BPM = jnp.concatenate([o.digits_BPM for o in outputs], axis=-1)
    # The sum of the entries, in the order of `lookup`.
    total_BPC = self._sum_entries(digits_BPM)
    return QuantizerOutput(
      codes_BP=digits_lib.compose(digits_BPM, self.config.stage_sizes),
      digits_BPM=digits_BPM,
      vectors_BPD=self.to_model(codebook.straight_through(y_BPC, total_BPC)),
      distance_BP=_sum(o.distance_BP for o in outputs),
      codebook_distance_BP=_sum(o.codebook_distance_BP for o in outputs),
    )

  def _sum_entries(self, digits_BPM: Array) -> Array:
    return _sum(
      stage.entries()[digits_BPM[..., i]] for i, stage in enumerate(self.stages)
    )

  def soft_digits(self, x_BPD: Array, temperature: float) -> tuple[Array, ...]:
    rest_BPC, found = self.to_code_space(x_BPD), []
    for stage in self.stages:
      (p_BPK,) = stage.soft_digits(rest_BPC, temperature)
      found.append(p_BPK)
      nearest_BPC = stage.entries()[jnp.argmax(p_BPK, axis=-1)]
      rest_BPC = rest_BPC - lax.stop_gradient(nearest_BPC)
    return tuple(found)

  def codebooks(self) -> tuple[Array, ...]:
    return tuple(stage.entries() for stage in self.stages)

  def lookup(self, codes_BP: Array) -> Array:
    digits_BPM = digits_lib.decompose(codes_BP, self.config.stage_sizes)
    return self.to_model(self._sum_entries(digits_BPM))

  def expected(self, probabilities: tuple[Array, ...]) -> Array:
    pairs = zip(self.stages, probabilities, strict=True)
    return self.to_model(_sum(p @ stage.entries() for stage, p in pairs))


_sum = functools.partial(functools.reduce, operator.add)


class FiniteScalarQuantizer(Quantizer):
  """Finite scalar quantizer: each of C = M dimensions is rounded to few levels.

  Digit m is round(bound(down(x)_m)), where bound squashes a number with tanh to
  the range of `config.levels[m]` integers; see `ops.fsq`. The digit of
  dimension 0 is the least significant. There is nothing to learn but the
  projections, no state, and no need of a commitment loss.

  Source: Mentzer et al., arXiv:2309.15505, section 3.1 and appendix A.1.
  """

  def setup(self) -> None:
    self.setup_projections(len(self.config.levels))

  def __call__(
    self, x_BPD: Array, is_valid_BP: Array, row_B: Array
  ) -> QuantizerOutput:
    del row_B  # Slots do not depend on each other.
    value_BPC, digits_BPM = fsq.quantize(
      self.to_code_space(x_BPD), self.config.levels
    )
    zeros_BP = jnp.zeros(is_valid_BP.shape, jnp.float32)
    return QuantizerOutput(
      codes_BP=digits_lib.compose(digits_BPM, self.config.stage_sizes),
      digits_BPM=digits_BPM,
      vectors_BPD=self.to_model(value_BPC),
      distance_BP=zeros_BP,
      codebook_distance_BP=zeros_BP,
    )

  def soft_digits(self, x_BPD: Array, temperature: float) -> tuple[Array, ...]:
    levels = self.config.levels
    value_BPM = fsq.bound(self.to_code_space(x_BPD), levels)
    return tuple(
      jax.nn.softmax(
        -jnp.square(value_BPM[..., m, None] + size // 2 - jnp.arange(size))
        / temperature
      )
      for m, size in enumerate(levels)
    )

  def codebooks(self) -> None:
    return None

  def lookup(self, codes_BP: Array) -> Array:
    digits_BPM = digits_lib.decompose(codes_BP, self.config.stage_sizes)
    return self.to_model(fsq.values(digits_BPM, self.config.levels))

  def expected(self, probabilities: tuple[Array, ...]) -> Array:
    # Values are linear in digits, so that the mean digit has the mean value.
    digits_BPM = jnp.stack(
      [p @ jnp.arange(p.shape[-1], dtype=p.dtype) for p in probabilities], -1
    )
    return self.to_model(fsq.values(digits_BPM, self.config.levels))
