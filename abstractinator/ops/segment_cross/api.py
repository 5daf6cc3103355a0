"""The one entry to segment cross-attention, whatever computes it."""

import chex

from abstractinator.ops.attention.api import require_shared_heads
from abstractinator.ops.segment_cross import reference, xla
from abstractinator.types import Array

_IMPLEMENTATIONS = {
  'reference': reference.segment_cross_attention,
  'xla': xla.segment_cross_attention,
}


def segment_cross_attention(
  q_BTHA: Array | None,
  k_BPGA: Array | None,
  v_BPGE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
  implementation: str,
) -> Array:
  """Attention over the slots index - lookback .. index of each query.

  Args:
    q_BTHA: [B, T, H, A] queries. Not read with a lookback of 0, where the
      softmax over the one visible slot is 1; may then be None.
    k_BPGA: [B, P, G, A] keys, one a segment slot, G of H or 1; likewise.
    v_BPGE: [B, P, G, E] values, G of H or 1, whatever that of the keys.
    index_BT: [B, T] int32, the query's own slot; outside 0..P-1 for none.
    lowest_BT: [B, T] int32, first slot the query may see: that of the first
      segment of its document.
    lookback: How many slots before its own a query sees, >= 0.
    scale: Factor on the scores.
    implementation: 'xla' gathers the few rows, linear in T; 'reference' is
      dense, the oracle of the tests.

  Returns:
    [B, T, H, E] of the type of `v_BPGE`, with a lookback of 0 [B, T, G, E];
    zeros for a query without slot. Softmax is in float32.

  Raises:
    ValueError: If the implementation is unknown, the lookback negative, or
      keys or values have another number of heads.
  """
  chex.assert_rank([v_BPGE, index_BT], [4, 2])
  chex.assert_equal_shape([index_BT, lowest_BT])
  if lookback:
    chex.assert_rank([q_BTHA, k_BPGA], 4)
    chex.assert_equal_shape_prefix([q_BTHA, index_BT], 2)
    chex.assert_equal_shape_prefix([k_BPGA, v_BPGE], 2)
    require_shared_heads(q_BTHA.shape[2], k_BPGA, v_BPGE)
  if lookback < 0:
    raise ValueError(f'lookback: got {lookback}, allowed: >= 0')
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f'implementation: got {implementation!r}, allowed:'
      f' {", ".join(_IMPLEMENTATIONS)}'
    )
  return _IMPLEMENTATIONS[implementation](
    q_BTHA,
    k_BPGA,
    v_BPGE,
    index_BT=index_BT,
    lowest_BT=lowest_BT,
    lookback=lookback,
    scale=scale,
  )
