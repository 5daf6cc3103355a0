"""Bytes to words and back under integer frequencies.

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
  """Takes bytes in the order in which `Decoder` gives them back."""

  def __init__(self):
    stream = _constriction()
    self._coder = stream.queue.RangeEncoder()
    self._family = stream.model.Categorical(perfect=False)

  def add(self, bytes_N: np.ndarray, frequencies_NV: np.ndarray) -> None:
    """Writes bytes [N] uint8 of frequencies [N, 256] int32."""
    self._coder.encode(
      bytes_N.astype(np.int32), self._family, _probabilities(frequencies_NV)
    )

  def finish(self) -> bytes:
    """All of it."""
    return self._coder.get_compressed().astype('<u4').tobytes()


class Decoder:
  """Gives bytes back."""

  def __init__(self, payload: bytes):
    stream = _constriction()
    words = np.frombuffer(payload, '<u4').astype(np.uint32)
    self._coder = stream.queue.RangeDecoder(words)
    self._family = stream.model.Categorical(perfect=False)

  def take(self, frequencies_NV: np.ndarray) -> np.ndarray:
    """Reads bytes [N] uint8 of frequencies [N, 256] int32.

    Raises:
      ValueError: If no bytes of such frequencies were written like that.
    """
    try:
      found_N = self._coder.decode(self._family, _probabilities(frequencies_NV))
    except AssertionError as error:  # How the library says so.
      raise ValueError('no bytes of these frequencies') from error
    return found_N.astype(np.uint8)


def _probabilities(frequencies_NV: np.ndarray) -> np.ndarray:
  return np.ldexp(frequencies_NV.astype(np.float32), -PRECISION_BITS)
