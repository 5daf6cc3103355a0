"""The one entry to segment pooling, whatever computes it."""

import chex

from abstractinator.ops.segment_pool import reference, xla
from abstractinator.types import Array

_IMPLEMENTATIONS = {
  'reference': reference.segment_pool,
  'xla': xla.segment_pool,
}


def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  index_BS: Array,
  *,
  num_slots: int,
  implementation: str,
) -> Array:
  """Averages values over each segment, weighted by a softmax over its ids.

  Args:
    score_BSQH: [B, S, Q, H] attention scores of the learned queries.
    value_BSHE: [B, S, H, E] values, which all queries share.
    index_BS: [B, S] int32, segment of each id, not decreasing where >= 0. Ids
      outside 0..num_slots-1 belong to no slot and get zero gradients.
    num_slots: Segments of the result, P.
    implementation: 'xla' sums sorted segments, linear in S; 'reference' is
      dense, the oracle of the tests.

  Returns:
    [B, P, Q, H, E] of the type of `value_BSHE`; empty slots are zero. Softmax
    and sums are in float32.

  Raises:
    ValueError: If the implementation is unknown or there is no slot.
  """
  chex.assert_rank([score_BSQH, value_BSHE, index_BS], [4, 4, 2])
  chex.assert_equal_shape_prefix([score_BSQH, value_BSHE, index_BS], 2)
  chex.assert_equal(score_BSQH.shape[3], value_BSHE.shape[2])
  if num_slots < 1:
    raise ValueError(f'num_slots: got {num_slots}, allowed: >= 1')
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f'implementation: got {implementation!r}, allowed:'
      f' {", ".join(_IMPLEMENTATIONS)}'
    )
  return _IMPLEMENTATIONS[implementation](
    score_BSQH, value_BSHE, index_BS, num_slots=num_slots
  )
