"""Texts that a lossless codec must restore."""

import numpy as np


def of_any_bytes(num_random: int) -> dict[str, bytes]:
  """Returns texts by name; one has a number of random bytes."""
  return {
    'empty': b'',
    'one byte': b'x',
    'all values': bytes(range(256)),
    'random': np.random.default_rng(1).bytes(num_random),
    'invalid UTF-8': b'\xff\xfe\xc3(' * 50 + b'\x80',
  }
