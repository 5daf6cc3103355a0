"""Embedding and prediction of ids, which may be codes of several digits."""

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax
from optax.losses import (
  softmax_cross_entropy_with_integer_labels as cross_entropy,
)

from abstractinator.model import layers
from abstractinator.ops import digits as digits_lib
from abstractinator.ops import stage_logits
from abstractinator.ops.dictionary import Spelling
from abstractinator.ops.sampling import likeliest
from abstractinator.ops.take_rows import take_rows
from abstractinator.types import Array, Special

# Entries of each stage of a quantizer, M arrays [K, C] float32.
Codebooks = tuple[Array, ...]
# Function from the number of a digit and its logits [..., K], -inf where a
# value cannot come next, to chosen digits [...] int32.
ChooseDigit = Callable[[int, Array], Array]


@flax.struct.dataclass
class IdLogits:
  """Predictions of ids, digit by digit.

  Attributes:
    logits: Logits of each digit, M arrays [..., K] float32. Those of the first
      digit score the special ids too, after the values of the digit.
    best: Id of the best digits, [...] int32. Each digit is the best given the
      digits before it: the true ones where they are given, else the best.
  """

  logits: tuple[Array, ...]
  best: Array

  def told(self, spelling: Spelling | None) -> 'IdLogits':
    """Returns predictions that are certain of the ids that codes spell."""
    if spelling is None:
      return self
    # Only bytes are spelled, which have one digit.
    (logits_V,) = self.logits
    best = jnp.where(spelling.is_given, spelling.ids, self.best)
    return IdLogits((spelling.logits(logits_V),), best)


class Vocabulary(nn.Module):
  """Embeddings and output logits of ids: ordinary ids of M digits and specials.

  There are two forms:

  Untied, for ids of one digit without `code_dim`: a table of embeddings, and a
  linear head for the logits, or for the difference to given ones.

  Tied, otherwise: a table of entries in C dimensions for each digit, where C is
  D if `code_dim` is None; else a matrix W [C, D] connects the two spaces. An id
  is embedded as the sum of the entries of its digits times W. A state h is
  scored as h W^T against the entries, one digit after the other (see
  `ops.stage_logits`). Special ids have entries beside those of the first digit,
  and no further digits. One learned number scales all logits, which start
  small: the first loss is near that of a uniform guess.

  Tied tables are parameters, or with `has_tables` False the codebooks of the
  level below, which every call is given and which get no gradient.

  Attributes:
    sizes: Number of values of each digit of an ordinary id, M of them; the
      first digit counts least. Bytes are (256,).
    d_model: Width of embeddings and states, D.
    code_dim: Width of the entries, C; None for D.
    distance: Kind of score: 'dot' for inner products, 'squared' for negative
      squared distances.
    residual_conditioning: Whether the entries of the digits before a digit are
      subtracted from the state before it is scored.
    dtype: Type of activations and matrix products; parameters and logits are
      float32.
    has_tables: Whether tables are parameters.
    has_eos: Whether EOS can be a next id. If not, no special id can, and
      predictions give all of them a logit of -inf.

  Parameters:
    Untied: embed/embedding [V, D] and head/kernel [D, V].
    Tied: stage_0/embedding and so on [K, C], if tables are parameters;
    special/embedding [3, C]; kernel [C, D], with `code_dim`; log_scale [].

  Source: the tied form after the code space of the original, see Deviations in
    the README; residual digits after Zeghidour et al., arXiv:2107.03312.
  """

  sizes: tuple[int, ...]
  d_model: int
  code_dim: int | None
  distance: str
  residual_conditioning: bool
  dtype: jnp.dtype
  has_tables: bool = True
  has_eos: bool = True

  @property
  def num_ids(self) -> int:
    """Number of ordinary ids; the special ids follow them."""
    return math.prod(self.sizes)

  @property
  def is_tied(self) -> bool:
    """True if ids are predicted with the tables that embed them."""
    return not (
      self.has_tables
      and self.code_dim is None
      and len(self.sizes) == 1
      and self.distance == 'dot'
    )

  def setup(self) -> None:
    if not self.is_tied:
      vocab = self.num_ids + len(Special)
      self.table = layers.embed(vocab, self.d_model, self.dtype, name='embed')
      self.head = layers.logits(vocab, self.dtype)
      return
    width = self.d_model if self.code_dim is None else self.code_dim
    self.special = layers.embed(len(Special), width, jnp.float32)
    if self.has_tables:
      self.stages = [
        layers.embed(size, width, jnp.float32, name=f'stage_{stage}')
        for stage, size in enumerate(self.sizes)
      ]
    if self.code_dim is not None:
      # Embeddings come out as large as the entries.
      self.kernel = self.param(
        'kernel', nn.initializers.lecun_normal(), (width, self.d_model)
      )
    self.log_scale = self.param('log_scale', nn.initializers.zeros, ())

  def embed(self, ids: Array, codebooks: Codebooks | None = None) -> Array:
    """Returns the vectors of ids.

    Args:
      ids: Ordinary or special ids, [...] int32.
      codebooks: Tables of entries, if they are not parameters.

    Returns:
      [..., D] of the compute type.
    """
    if not self.is_tied:
      return self.table(ids)
    digits_M, is_special = self._digits(ids)
    first, *others = self._tables(codebooks)
    entry_C = take_rows(first, digits_M[..., 0], first.dtype)
    for stage, table_KC in enumerate(others, start=1):
      of_digit_C = take_rows(table_KC, digits_M[..., stage], first.dtype)
      entry_C += jnp.where(is_special[..., None], 0, of_digit_C)
    entry_C = entry_C.astype(self.dtype)
    if self.code_dim is None:
      return entry_C
    return entry_C @ self.kernel.astype(self.dtype)

  def predict(
    self,
    h_D: Array,
    ids: Array | None = None,
    codebooks: Codebooks | None = None,
    base_V: Array | None = None,
  ) -> IdLogits:
    """Computes the logits of every value of every digit.

    Args:
      h_D: Normalised states, [..., D] of the compute type.
      ids: True ids, [...] int32, whose first digits condition the later ones.
        None to condition on the best digits; then BOS and PAD, which are never
        a next id, have logits of -inf.
      codebooks: Tables of entries, if they are not parameters.
      base_V: Logits that the head adds to, [..., V] float32; only for the
        untied form.

    Returns:
      The predictions.
    """
    allowed_K = None
    if ids is None or not self.has_eos:
      allowed_K = self._allowed()
    predicted = self._scores(h_D, ids, codebooks, base_V, allowed_K)
    return _restrict(predicted, allowed_K)

  def draw(
    self,
    h_D: Array,
    choose: ChooseDigit,
    codebooks: Codebooks | None = None,
    base_V: Array | None = None,
  ) -> tuple[Array, Array]:
    """Chooses ids, digit by digit.

    Args:
      h_D: Normalised states, [..., D] of the compute type.
      choose: Function that chooses digits by their logits.
      codebooks: Tables of entries, if they are not parameters.
      base_V: Logits that the head adds to, as in `predict`.

    Returns:
      Ids [...] int32, and their `nats` in `predict` of the same ids.
    """
    allowed_K = self._allowed()
    drawn = self._scores(h_D, None, codebooks, base_V, allowed_K, choose)
    if not self.has_eos:
      drawn = _restrict(drawn, allowed_K)
    return drawn.best, self.nats(drawn, drawn.best)

  def nats(self, predicted: IdLogits, ids: Array) -> Array:
    """Computes -log p of ids, summed over digits.

    Args:
      predicted: Predictions of `predict` with the same ids.
      ids: Ids, none of them BOS or PAD, [...] int32.

    Returns:
      [...] float32; infinite for a special id that cannot be a next id.
    """
    digits_M, is_special = self._digits(ids)
    first, *others = predicted.logits
    total = cross_entropy(first, digits_M[..., 0])
    for stage, logits in enumerate(others, start=1):
      nats = cross_entropy(logits, digits_M[..., stage])
      total += jnp.where(is_special, 0.0, nats)
    return total

  def _allowed(self) -> Array:
    """Returns which values of the first digit can come next, [K] bool."""
    symbol_K = jnp.arange(self.sizes[0] + len(Special)) - self.sizes[0]
    is_allowed_K = symbol_K < 0
    return is_allowed_K | (symbol_K == Special.EOS) & self.has_eos

  def _scores(
    self,
    h_D: Array,
    ids: Array | None,
    codebooks: Codebooks | None,
    base_V: Array | None,
    allowed_K: Array | None,
    choose: ChooseDigit | None = None,
  ) -> IdLogits:
    """Computes logits of all values, and the best or chosen allowed ids."""
    if not self.is_tied:
      logits = self.head(h_D).astype(jnp.float32)
      if base_V is not None:
        logits += base_V
      choice = _allow(logits, allowed_K)
      best = likeliest(choice) if choose is None else choose(0, choice)
      return IdLogits((logits,), best)
    if self.code_dim is not None:
      h_D = h_D @ self.kernel.astype(self.dtype).T
    # A state contains the embedding of the id that was fed. Divided by D, its
    # product with that id's entry starts below 1 at any width; a squared
    # distance counts the product twice.
    scale = jnp.exp(self.log_scale) / self.d_model
    if self.distance == 'squared':
      scale /= 2
    scored = stage_logits.stage_logits(
      h_D,
      self._tables(codebooks),
      None if ids is None else self._digits(ids)[0],
      residual_conditioning=self.residual_conditioning,
      distance=self.distance,
      allowed_K=allowed_K,
      choose=choose and (lambda stage, logits: choose(stage, logits * scale)),
    )
    logits = tuple(logits * scale for logits in scored.logits)
    return IdLogits(logits, self._ids(scored.digits_M))

  def _tables(self, codebooks: Codebooks | None) -> Codebooks:
    """Returns the entries of each digit, specials after those of the first."""
    if self.has_tables:
      first, *others = (stage.embedding for stage in self.stages)
    elif codebooks is None:
      raise ValueError('codebooks: got None, allowed: those of the level below')
    else:
      first, *others = lax.stop_gradient(codebooks)
    special = self.special.embedding.astype(first.dtype)
    return (jnp.concatenate([first, special]), *others)

  def _digits(self, ids: Array) -> tuple[Array, Array]:
    """Returns the digits of ids, [..., M], and which ids are special.

    The first digit of a special id follows the values of ordinary ones; the
    others are 0 and mean nothing.
    """
    is_special = ids >= self.num_ids
    digits_M = digits_lib.decompose(
      jnp.where(is_special, 0, ids).astype(jnp.int32), self.sizes
    )
    symbol = jnp.where(is_special, ids - self.num_ids + self.sizes[0], 0)
    return digits_M.at[..., 0].add(symbol), is_special

  def _ids(self, digits_M: Array) -> Array:
    """Returns the ids of digits, the inverse of `_digits`."""
    symbol = digits_M[..., 0] - self.sizes[0]
    ordinary = digits_lib.compose(digits_M, self.sizes)
    return jnp.where(symbol >= 0, self.num_ids + symbol, ordinary)


def _allow(logits_K: Array, allowed_K: Array | None) -> Array:
  if allowed_K is None:
    return logits_K
  return jnp.where(allowed_K, logits_K, -jnp.inf)


def _restrict(predicted: IdLogits, allowed_K: Array | None) -> IdLogits:
  """Gives values of the first digit that are not allowed a logit of -inf."""
  first, *others = predicted.logits
  return IdLogits((_allow(first, allowed_K), *others), predicted.best)
