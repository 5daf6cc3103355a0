"""How ids are fed to a decoder and predicted by it."""

import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.modules import layers
from abstractinator.ops import digits as digits_lib
from abstractinator.ops import stage_logits
from abstractinator.ops.cross_entropy import cross_entropy
from abstractinator.ops.likeliest import likeliest
from abstractinator.ops.take_rows import take_rows
from abstractinator.types import Array, Special

Codebooks = tuple[Array, ...]


@flax.struct.dataclass
class IdLogits:
  """Predictions of ids, digit by digit.

  Attributes:
    logits: M arrays [..., K] float32, one a digit. The first scores the special
      ids too, after the values of the digit.
    best: [...] int32, id of the best digits; where the digits before a digit
      are given, of the best ones given those.
  """

  logits: tuple[Array, ...]
  best: Array


class Vocabulary(nn.Module):
  """Ordinary ids of M digits and the special ids after them.

  Two forms:

  Ids of one digit without `code_dim` have a table of embeddings and a head of
  its own, with inner products for logits.

  Otherwise there is one table of entries in C dimensions a digit, C = D by
  `code_dim` None, and with `code_dim` one matrix W [C, D]. An id is embedded as
  the sum of the entries of its digits times W; a state h is compared as h W^T
  with the entries, one digit after the other, see `ops.stage_logits`. The
  tables are parameters, or with `has_tables` False given in every call: then
  they get no gradient. Specials have entries of their own beside those of the
  first digit and no further digits. One learned number scales all logits, which
  start small: the first loss is near that of a uniform guess.

  Attributes:
    sizes: Values of each digit of an ordinary id, M of them; the first counts
      least. Bytes are (256,).
    d_model: D.
    code_dim: C.
    distance: 'dot', inner products, or 'squared', negative squared distances.
    residual_conditioning: Whether what the digits before a digit stand for is
      taken from the state before it is compared.
    dtype: Compute type; logits are float32.
    has_tables: Whether tables are parameters.
    has_eos: Whether EOS can be a next id. If not no special can, and all of
      them have logits of -inf wherever ids are predicted.

  Parameters:
    embed/embedding: [V, D] and head/kernel: [D, V], in the first form; else
    stage_0/embedding and so on: [K, C], where tables are parameters,
    special/embedding: [3, C],
    kernel: [C, D], with `code_dim`,
    log_scale: [].

  Source: the second form after the code space of the original, see Deviations
    in the README; residual digits Zeghidour et al., arXiv:2107.03312.
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
    """Ordinary ids."""
    return math.prod(self.sizes)

  @property
  def is_tied(self) -> bool:
    """Whether ids are predicted with what embeds them."""
    return not (
      self.has_tables
      and self.code_dim is None
      and len(self.sizes) == 1
      and self.distance == 'dot'
    )

  def setup(self):
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
    """Vectors of ids.

    Args:
      ids: [...] int32, ordinary or special.
      codebooks: M arrays [K, C] where tables are not parameters.

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
  ) -> IdLogits:
    """Scores every value of every digit.

    Args:
      h_D: [..., D] of the compute type, normalised states.
      ids: [...] int32, whose digits each digit is told of those before it. None
        to go on from the best ones; then BOS and PAD, which are nobody's next
        id, are never the best, and have logits of -inf.
      codebooks: As of `embed`.

    Returns:
      The predictions.
    """
    allowed_K = None
    if ids is None or not self.has_eos:
      allowed_K = self._allowed()
    predicted = self._scores(h_D, ids, codebooks, allowed_K)
    first, *others = predicted.logits
    return predicted.replace(logits=(_allow(first, allowed_K), *others))

  def draw(
    self,
    h_D: Array,
    choose: Callable[[int, Array], Array],
    codebooks: Codebooks | None = None,
  ) -> tuple[Array, Array]:
    """Chooses ids, digit by digit.

    Args:
      h_D: [..., D] of the compute type, normalised states.
      choose: From the number of a digit and its logits [..., K] to digits [...]
        int32; what is nobody's next id has logits of -inf.
      codebooks: As of `embed`.

    Returns:
      [...] int32 ids, and their `nats` in `predict` of the same ids.
    """
    allowed_K = self._allowed()
    drawn = self._scores(h_D, None, codebooks, allowed_K, choose)
    if not self.has_eos:
      first, *others = drawn.logits
      drawn = drawn.replace(logits=(_allow(first, allowed_K), *others))
    return drawn.best, self.nats(drawn, drawn.best)

  def nats(self, predicted: IdLogits, ids: Array) -> Array:
    """-log p of ids, summed over digits.

    Args:
      predicted: From `predict` with the same ids.
      ids: [...] int32, none of them BOS or PAD.

    Returns:
      [...] float32; infinite for a special that cannot be a next id.
    """
    digits_M, is_special = self._digits(ids)
    first, *others = predicted.logits
    total = cross_entropy(first, digits_M[..., 0])
    for stage, logits in enumerate(others, start=1):
      nats = cross_entropy(logits, digits_M[..., stage])
      total += jnp.where(is_special, 0.0, nats)
    return total

  def _allowed(self) -> Array:
    """Which values of the first digit can be a next id, [K] bool."""
    symbol_K = jnp.arange(self.sizes[0] + len(Special)) - self.sizes[0]
    is_allowed_K = symbol_K < 0
    return is_allowed_K | (symbol_K == Special.EOS) & self.has_eos

  def _scores(
    self,
    h_D: Array,
    ids: Array | None,
    codebooks: Codebooks | None,
    allowed_K: Array | None,
    choose: Callable[[int, Array], Array] | None = None,
  ) -> IdLogits:
    """Logits of all values, and the ids that are allowed and best or chosen."""
    if not self.is_tied:
      logits = self.head(h_D).astype(jnp.float32)
      choice = _allow(logits, allowed_K)
      if choose is None:
        best = likeliest(choice)
      else:
        best = choose(0, choice)
      return IdLogits((logits,), best)
    if self.code_dim is not None:
      h_D = h_D @ self.kernel.astype(self.dtype).T
    # A state holds the id that was fed. Over D, its product with that id's
    # entry starts below 1 at any width; a squared distance has it twice.
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
    """Entries of each digit, the specials after those of the first."""
    if self.has_tables:
      first, *others = (stage.embedding for stage in self.stages)
    else:
      first, *others = lax.stop_gradient(codebooks)
    special = self.special.embedding.astype(first.dtype)
    return (jnp.concatenate([first, special]), *others)

  def _digits(self, ids: Array) -> tuple[Array, Array]:
    """Digits [..., M] of ids, and which ids are special.

    The first digit of a special follows the values of ordinary ones; the others
    are 0 and mean nothing.
    """
    is_special = ids >= self.num_ids
    digits_M = digits_lib.decompose(
      jnp.where(is_special, 0, ids).astype(jnp.int32), self.sizes
    )
    symbol = jnp.where(is_special, ids - self.num_ids + self.sizes[0], 0)
    return digits_M.at[..., 0].add(symbol), is_special

  def _ids(self, digits_M: Array) -> Array:
    """Undoes `_digits`."""
    symbol = digits_M[..., 0] - self.sizes[0]
    ordinary = digits_lib.compose(digits_M, self.sizes)
    return jnp.where(symbol >= 0, self.num_ids + symbol, ordinary)


def _allow(logits_K: Array, allowed_K: Array | None) -> Array:
  if allowed_K is None:
    return logits_K
  return jnp.where(allowed_K, logits_K, -jnp.inf)
