"""Segments decoded greedily in lanes, without merging those that look alike."""

import jax.numpy as jnp

from abstractinator.decoding.choices import Greedy
from abstractinator.decoding.lanes import decode_lanes
from abstractinator.decoding.segments import SegmentCodes


def decode_segments(
  expander, vectors_BUD, is_valid_BP, lowest_BP, codebooks=None, **limits
):
  """Ids [B, P, L] and lengths [B, P] of every segment."""
  decoded = decode_lanes(
    expander,
    SegmentCodes(expander.remember(vectors_BUD), jnp.asarray(lowest_BP)),
    is_valid_BP,
    Greedy(),
    codebooks,
    **limits,
  )
  return decoded.ids_BPL, decoded.length_BP
