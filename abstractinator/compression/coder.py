"""Range coder of symbols, and the integer frequencies that it is given.

The coder is that of `constriction`, a library in Rust. It is given
probabilities, the frequencies over 2^PRECISION_BITS, which float32 holds
exactly, and makes its cumulative tables of 24 bits from them.

The frequencies of an alphabet are at least 1, so that every symbol can be
coded, and add up to 2^PRECISION_BITS.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.ops.digits import place_values
from abstractinator.types import NUM_BYTES, Array

PRECISION_BITS = 20
# A coder ends with up to two words that the frequencies do not account for.
_END_BITS = 64
# The coder's tables of 24 bits round frequencies: the bits that these stand for
# may exceed those that it takes by this factor.
_ROUNDING = 1.01


class RangeCoder:
  """Encoder of symbols, or decoder of what an encoder wrote.

  A decoder is called as the encoder was, in the same order, so that one loop
  serves both directions: `code` returns the symbols in both, and a decoder
  ignores the values of those that it is given.

  Attributes:
    is_decoder: Whether symbols are read.
  """

  def __init__(self, payload: bytes | None = None) -> None:
    """Starts at the first symbol.

    Args:
      payload: Bytes that an encoder wrote, to decode them; None to encode.
    """
    try:
      from constriction import stream
    except ImportError as error:
      raise ValueError(
        "constriction: is not installed; pip install 'abstractinator[compress]'"
      ) from error
    self.is_decoder = payload is not None
    self._head, self._payload = b'', payload or b''
    self._stream = stream
    self._bits_left = _ROUNDING * 8 * len(self._payload) + _END_BITS
    # A decoder starts at the first symbol, after the head.
    self._coder: Any = None if self.is_decoder else stream.queue.RangeEncoder()

  def head(self, numbers: list[int]) -> list[int]:
    """Codes numbers that stand before the symbols; called once, before `code`.

    Args:
      numbers: Integers in 0..2^32-1; a decoder ignores their values.

    Returns:
      The numbers.

    Raises:
      ValueError: If the payload of a decoder is too short.
    """
    size = 4 * len(numbers)
    if not self.is_decoder:
      self._head = np.array(numbers, '<u4').tobytes()
      return numbers
    if len(self._payload) < size:
      raise ValueError(
        f'got {len(self._payload)} bytes, allowed: at least {size}'
      )
    head, self._payload = self._payload[:size], self._payload[size:]
    return np.frombuffer(head, '<u4').tolist()

  def code(self, frequencies: np.ndarray, symbols_N: np.ndarray) -> np.ndarray:
    """Codes symbols.

    Args:
      frequencies: Frequencies of V values, int32: [N, V], one row for each
        symbol, or [V] for all of them.
      symbols_N: The symbols, [N] integers in 0..V-1; a decoder ignores their
        values.

    Returns:
      The symbols, [N].

    Raises:
      ValueError: If a decoder finds no symbols that were written with these
        frequencies, or the payload ends before the symbols do.
    """
    if frequencies.shape[-1] == 1:  # Takes no bits; the library refuses it.
      return np.zeros_like(symbols_N)
    p = np.ldexp(frequencies.astype(np.float32), -PRECISION_BITS)
    # One model for all symbols, or a family of models and their parameters.
    shared, each = ((p,), ()) if p.ndim == 1 else ((), (p,))
    model = self._stream.model.Categorical(*shared, perfect=False)
    if not self.is_decoder:
      self._coder.encode(symbols_N.astype(np.int32), model, *each)
      return symbols_N
    if self._coder is None:
      words = np.frombuffer(self._payload, '<u4').astype(np.uint32)
      self._coder = self._stream.queue.RangeDecoder(words)
    try:
      found_N = self._coder.decode(model, *(each or (len(symbols_N),)))
    except AssertionError as error:  # The library's error for such data.
      raise ValueError('no symbols of these frequencies') from error
    self._spend(p, found_N)
    return found_N

  def _spend(self, p: np.ndarray, found_N: np.ndarray) -> None:
    """Requires that the payload has had the bits of symbols.

    The library reads zeros, without an end, behind the last word.
    """
    chosen_N = p[found_N] if p.ndim == 1 else p[np.arange(len(p)), found_N]
    self._bits_left += float(np.log2(chosen_N).sum())
    if self._bits_left < 0:
      raise ValueError('the stored bytes end before the symbols do')

  def finish(self) -> bytes:
    """Returns all that an encoder wrote, in little-endian words of 32 bits."""
    return self._head + self._coder.get_compressed().astype('<u4').tobytes()


def code_digits(
  sizes: tuple[int, ...],
  active_B: np.ndarray,
  wanted_N: np.ndarray,
  table_of: Callable[[int, np.ndarray], Array],
  coder: RangeCoder,
) -> np.ndarray:
  """Codes one id of each active lane, digit by digit.

  Args:
    sizes: Values of each digit.
    active_B: Lanes that have an id, [B] bool.
    wanted_N: The ids of the active lanes, [N] int32; ignored by a decoder.
    table_of: Function from the number of a digit and ids whose earlier digits
      are known, [B] int32, to frequencies of the digit's values, [B, K] int32.
    coder: Encoder or decoder.

  Returns:
    The ids, [B] int32, 0 in other lanes.
  """
  ids_B = np.zeros(len(active_B), np.int32)
  for stage, (size, value) in enumerate(
    zip(sizes, place_values(sizes), strict=True)
  ):
    table_BK = np.asarray(table_of(stage, ids_B.copy()))
    ids_B[active_B] += value * coder.code(
      table_BK[active_B], wanted_N // value % size
    )
  return ids_B


def most_bytes(size: int) -> int:
  """Returns the most bytes of a text that a payload of `size` bytes can hold.

  The likeliest byte takes some bits, since each other one keeps a frequency.
  """
  fewest_bits = -math.log2(1 - (NUM_BYTES - 1) / (1 << PRECISION_BITS))
  return int((8 * size + _END_BITS) / fewest_bits)


def logit_frequencies(logits_BV: Array) -> Array:
  """Computes frequencies from the logits of a model.

  Args:
    logits_BV: Scores of V symbols, [B, V] float32.

  Returns:
    [B, V] int32: the softmax, rounded down after 1 is set aside for each
    symbol. What rounding leaves goes to the most likely symbol. A probability
    of NaN counts as 0.
  """
  total, size = 1 << PRECISION_BITS, logits_BV.shape[-1]
  p_BV = jax.nn.softmax(logits_BV, axis=-1)
  found_BV = 1 + jnp.floor(p_BV * (total - size)).astype(jnp.int32)
  rest_B = total - jnp.sum(found_BV, axis=-1)
  best_B = jnp.argmax(found_BV, axis=-1)
  return found_BV.at[jnp.arange(len(found_BV)), best_B].add(rest_B)


def count_frequencies(counts_V: np.ndarray) -> np.ndarray:
  """Computes frequencies from counts of the symbols seen so far.

  Args:
    counts_V: Occurrences of V symbols, [V] int64.

  Returns:
    [V] int32: the estimate of Krichevsky and Trofimov, (count + 1/2) / (sum of
    counts + V/2), rounded as in `logit_frequencies`.
  """
  total, size = 1 << PRECISION_BITS, len(counts_V)
  share_V = (2 * counts_V + 1) * (total - size)
  found_V = 1 + share_V // (2 * int(counts_V.sum()) + size)
  found_V[np.argmax(found_V)] += total - found_V.sum()
  return found_V.astype(np.int32)
