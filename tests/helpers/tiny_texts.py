"""Bytes that a lossless codec must give back."""

import numpy as np


def of_any_bytes(num_random: int) -> dict[str, bytes]:
  """By name; so many are random, which nothing makes shorter."""
  return {
    'empty': b'',
    'one byte': b'x',
    'all values': bytes(range(256)),
    'random': np.random.default_rng(1).bytes(num_random),
    'invalid UTF-8': b'\xff\xfe\xc3(' * 50 + b'\x80',
  }
