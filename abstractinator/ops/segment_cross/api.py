"""The one entry to segment cross-attention, whatever computes it."""

import chex

from abstractinator.ops.attention.api import require_shared_heads
from abstractinator.ops.segment_cross import gather, halo, reference
from abstractinator.ops.segment_cross.lookup import lookup
from abstractinator.ops.shards import over_shards
from abstractinator.types import Array

_IMPLEMENTATIONS = {
  'reference': reference.segment_cross_attention,
  'gather': gather.segment_cross_attention,
  'halo': halo.segment_cross_attention,
}


def segment_cross_attention(
  q_BTHA: Array | None,
  k_BUGA: Array | None,
  v_BUGE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
  implementation: str,
  rows_per_slot: int = 1,
) -> Array:
  """Attention over the slots index - lookback .. index of each query.

  Args:
    q_BTHA: [B, T, H, A] queries. Not read with a lookback of 0 and one row a
      slot, where the softmax over the one visible row is 1; may then be None.
    k_BUGA: [B, U, G, A] keys, U = P x `rows_per_slot`, those of a slot side by
      side, G of H or 1; likewise.
    v_BUGE: [B, U, G, E] values, G of H or 1, whatever that of the keys.
    index_BT: [B, T] int32, the query's own slot; outside 0..P-1 for none.
    lowest_BT: [B, T] int32, first slot the query may see: that of the first
      segment of its document.
    lookback: How many slots before its own a query sees, >= 0.
    scale: Factor on the scores.
    implementation: A name in `support.SUPPORT`. 'gather' fetches the few rows
      each query sees; 'halo' multiplies a block of queries with the run of
      slots that it sees, see there what that asks of the indices; both are
      linear in T. 'reference' is dense, the oracle of the tests.
    rows_per_slot: Keys and values of a slot, >= 1; a query sees all or none.

  Returns:
    [B, T, H, E] of the type of `v_BUGE`, or [B, T, G, E] with a lookback of 0
    and one row a slot; zeros for a query without slot. Softmax is in float32.

  Raises:
    ValueError: If the implementation is unknown, the lookback negative, the
      rows do not fit into slots, or keys or values have another number of
      heads.
  """
  chex.assert_rank([v_BUGE, index_BT], [4, 2])
  chex.assert_equal_shape([index_BT, lowest_BT])
  if lookback < 0:
    raise ValueError(f'lookback: got {lookback}, allowed: >= 0')
  if rows_per_slot < 1 or v_BUGE.shape[1] % rows_per_slot:
    raise ValueError(
      f'rows_per_slot: got {rows_per_slot}, allowed: a divisor of the number of'
      f' rows ({v_BUGE.shape[1]})'
    )
  if lookback or rows_per_slot > 1:
    chex.assert_rank([q_BTHA, k_BUGA], 4)
    chex.assert_equal_shape_prefix([q_BTHA, index_BT], 2)
    chex.assert_equal_shape_prefix([k_BUGA, v_BUGE], 2)
    require_shared_heads(q_BTHA.shape[2], k_BUGA, v_BUGE)
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f'implementation: got {implementation!r}, allowed:'
      f' {", ".join(_IMPLEMENTATIONS)}'
    )
  if implementation != 'reference' and not lookback and rows_per_slot == 1:
    return lookup(v_BUGE, index_BT)

  def function(q, k, v, index, lowest):
    return _IMPLEMENTATIONS[implementation](
      q,
      k,
      v,
      index_BT=index,
      lowest_BT=lowest,
      lookback=lookback,
      scale=scale,
      rows_per_slot=rows_per_slot,
    )

  args = q_BTHA, k_BUGA, v_BUGE, index_BT, lowest_BT
  if implementation == 'reference':
    return function(*args)
  dims = ('B.H.', 'B.H.', 'B.H.', 'B.', 'B.')
  return over_shards(function, args, dims, 'B.H.')
