"""Public entry to segment cross-attention."""

import functools

import chex
import jax.numpy as jnp

from abstractinator.ops.attention.api import require_shared_heads
from abstractinator.ops.segment_cross import reference, xla
from abstractinator.ops.shards import over_shards
from abstractinator.ops.support import NOT_ON_GPU, Implementation, supported
from abstractinator.types import Array

IMPLEMENTATIONS = {
  'reference': Implementation(
    reference.segment_cross_attention,
    cost='T U H (A + E), T U H memory',
    note='dense, float32: the oracle of the tests',
  ),
  'gather': Implementation(
    xla.gather,
    cost='(lookback + 1) T H (A + E)',
    note=(
      'fetches the rows that a query sees, whatever the order of the slots; a'
      ' lookback of 0 is one fetch'
    ),
    is_reproducible_on=NOT_ON_GPU,
  ),
  'halo': Implementation(
    xla.halo,
    cost='(128 + lookback) T H (A + E) on the matrix unit',
    note=(
      '128 queries at a time against the run of slots that they see; slots rise'
      ' by at most one from a query to the next, and a query out of reach gets'
      ' zeros; a lookback of 0 is one fetch'
    ),
    is_reproducible_on=NOT_ON_GPU,
  ),
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
  """Attends from each query to the slots index - lookback .. index.

  With a lookback of 0 and one row per slot a query sees one row, whose softmax
  is 1: queries and keys are not read then, and may be None.

  Args:
    q_BTHA: Queries, [B, T, H, A].
    k_BUGA: Keys, [B, U, G, A], U = P x `rows_per_slot`, those of a slot side by
      side, G of H or 1.
    v_BUGE: Values, [B, U, G, E], G of H or 1, independent of that of the keys.
    index_BT: Slot of each query, [B, T] int32; outside 0..P-1 for none.
    lowest_BT: First slot each query may see, that of the first segment of its
      document, [B, T] int32.
    lookback: Number of slots before its own that a query sees, >= 0.
    scale: Factor on the scores.
    implementation: Key of `IMPLEMENTATIONS`; the docstring of `xla.halo` says
      what indices 'halo' takes. All but 'reference' are linear in T.
    rows_per_slot: Number of keys and values of a slot, >= 1; a query sees all
      of them or none.

  Returns:
    [B, T, H, E] of the type of `v_BUGE`, or [B, T, G, E] with a lookback of 0
    and one row per slot; zeros for a query without slot. Softmax is in float32.

  Raises:
    ValueError: If the implementation is unknown, the lookback negative, queries
      or keys missing, the rows do not fit into slots, or keys or values have
      another number of heads.
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
  attend = functools.partial(
    supported('segment_cross', IMPLEMENTATIONS, implementation),
    lookback=lookback,
    scale=scale,
    rows_per_slot=rows_per_slot,
  )
  if not lookback and rows_per_slot == 1:
    if implementation != 'reference':
      return xla.lookup(v_BUGE, index_BT)
    k_BUGA = jnp.zeros_like(v_BUGE[..., :1])
    q_BTHA = jnp.zeros((*index_BT.shape, *k_BUGA.shape[2:]))
  if q_BTHA is None or k_BUGA is None:
    raise ValueError('queries or keys: got None, allowed: arrays')
  chex.assert_rank([q_BTHA, k_BUGA], 4)
  chex.assert_equal_shape_prefix([q_BTHA, index_BT], 2)
  chex.assert_equal_shape_prefix([k_BUGA, v_BUGE], 2)
  require_shared_heads(q_BTHA.shape[2], k_BUGA, v_BUGE)

  def function(
    q: Array, k: Array, v: Array, index: Array, lowest: Array
  ) -> Array:
    return attend(q, k, v, index_BT=index, lowest_BT=lowest)

  args = q_BTHA, k_BUGA, v_BUGE, index_BT, lowest_BT
  if implementation == 'reference':
    return function(*args)
  return over_shards(
    function, args, ('B.H.', 'B.H.', 'B.H.', 'B.', 'B.'), 'B.H.'
  )
