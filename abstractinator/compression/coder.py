"""Symbols to words and back under integer frequencies.

The range coder is that of `constriction`, a library in Rust. It is given the
frequencies over 2^PRECISION_BITS, which float32 holds exactly, and makes its
cumulative tables of 24 bits from them.
"""

import numpy as np

from abstractinator.compression.byte_model import PRECISION_BITS


def _constriction():
  try:
    import constriction
  except ImportError as error:
    raise ValueError(
      "constriction: is not installed; pip install 'abstractinator[compress]'"
    ) from error
  return constriction.stream


class Encoder:
  """Takes symbols in the order in which `Decoder` gives them back."""

  def __init__(self):
    stream = _constriction()
    self._coder = stream.queue.RangeEncoder()
    self._model = stream.model.Categorical

  def add(self, symbols_N: np.ndarray, frequencies: np.ndarray) -> None:
    """Writes symbols [N] of frequencies [N, V] int32, or [V] of them all."""
    if frequencies.shape[-1] == 1:  # Says nothing, and the library takes none.
      return
    self._coder.encode(
      symbols_N.astype(np.int32), *_arguments(self._model, frequencies)
    )

  def finish(self) -> bytes:
    """All of it."""
    return self._coder.get_compressed().astype('<u4').tobytes()


class Decoder:
  """Gives symbols back."""

  def __init__(self, payload: bytes):
    stream = _constriction()
    words = np.frombuffer(payload, '<u4').astype(np.uint32)
    self._coder = stream.queue.RangeDecoder(words)
    self._model = stream.model.Categorical

  def take(self, frequencies: np.ndarray, count: int) -> np.ndarray:
    """Reads symbols.

    Args:
      frequencies: [N, V] int32, or [V] of them all.
      count: N.

    Returns:
      [N] int32.

    Raises:
      ValueError: If no symbols of such frequencies were written like that.
    """
    if frequencies.shape[-1] == 1:
      return np.zeros(count, np.int32)
    arguments = _arguments(self._model, frequencies)
    if frequencies.ndim == 1:
      arguments.append(count)
    try:
      return self._coder.decode(*arguments)
    except AssertionError as error:  # How the library says so.
      raise ValueError('no symbols of these frequencies') from error


def _arguments(model, frequencies: np.ndarray) -> list:
  """A model of the library, or a family of them and one for each symbol."""
  p = np.ldexp(frequencies.astype(np.float32), -PRECISION_BITS)
  if p.ndim == 1:
    return [model(p, perfect=False)]
  return [model(perfect=False), p]
