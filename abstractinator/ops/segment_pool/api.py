"""Public entry to segment pooling."""

import functools
from collections.abc import Callable

import chex
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.segment_pool import (
  pallas_tpu,
  pallas_triton,
  reference,
  xla,
)
from abstractinator.ops.segment_pool.support import SUPPORT
from abstractinator.ops.shards import over_shards
from abstractinator.ops.support import require_supported
from abstractinator.types import Array

_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
  'reference': reference.segment_pool,
  'xla': xla.segment_pool,
  'xla_deterministic': functools.partial(
    xla.segment_pool, is_deterministic=True
  ),
  'pallas_tpu': pallas_tpu.segment_pool,
  'pallas_triton': pallas_triton.segment_pool,
  'pallas_interpret': functools.partial(
    pallas_tpu.segment_pool, interpret=True
  ),
}


def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  index_BS: Array,
  *,
  num_slots: int,
  implementation: str | Callable[..., Array],
) -> Array:
  """Averages values over each segment, weighted by a softmax over its ids.

  Ids without a slot weigh nothing and get zero gradients: those whose index is
  outside 0..num_slots-1, or smaller than one before it.

  Args:
    score_BSQH: Attention scores of the learned queries, [B, S, Q, H].
    value_BSHE: Values that all queries share, [B, S, H, E].
    index_BS: Segment of each id, [B, S] int32, not decreasing where >= 0.
    num_slots: Number of segments of the result, P.
    implementation: Name in `support.SUPPORT`, which has the limits of each, or
      a function like `reference.segment_pool`. All names but 'reference', the
      oracle of the tests, are linear in S.

  Returns:
    [B, P, Q, H, E] of the type of `value_BSHE`; empty slots are zero. Softmax
    and sums are in float32; kernels round weights to the type of the values.

  Raises:
    ValueError: If the implementation is unknown, there is no slot, or
      'pallas_tpu' would not fit in the memory of a core.
    NotImplementedError: If the implementation cannot take the type.
  """
  chex.assert_rank([score_BSQH, value_BSHE, index_BS], [4, 4, 2])
  chex.assert_equal_shape_prefix([score_BSQH, value_BSHE, index_BS], 2)
  chex.assert_equal(score_BSQH.shape[3], value_BSHE.shape[2])
  if num_slots < 1:
    raise ValueError(f'num_slots: got {num_slots}, allowed: >= 1')
  if isinstance(implementation, str):
    require_supported('segment_pool', SUPPORT, implementation, value_BSHE)
    implementation = _IMPLEMENTATIONS[implementation]
  slot_BS, has_slot_BS = _sorted_slots(index_BS, num_slots)
  return over_shards(
    functools.partial(implementation, num_slots=num_slots),
    (score_BSQH, value_BSHE, slot_BS, has_slot_BS),
    ('B..H', 'B.H.', 'B.', 'B.'),
    'B..H.',
  )


def _sorted_slots(index_BS: Array, num_slots: int) -> tuple[Array, Array]:
  """Returns slots that never decrease, and which ids really have a slot.

  An id without a slot is given that of the id before it, to keep the order.
  """
  largest_BS = lax.cummax(index_BS, axis=1)
  has_slot_BS = (index_BS >= 0) & (index_BS < num_slots)
  has_slot_BS &= index_BS == largest_BS
  return jnp.clip(largest_BS, 0, num_slots - 1), has_slot_BS
