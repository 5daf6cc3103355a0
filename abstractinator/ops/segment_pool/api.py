"""Public entry to segment pooling."""

import functools
from collections.abc import Callable

import chex
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.segment_pool import reference, xla
from abstractinator.ops.shards import over_shards
from abstractinator.ops.support import (
  NOT_ON_GPU,
  TPU_DTYPES,
  Implementation,
  kernel,
  supported,
)
from abstractinator.types import Array

_pallas_tpu = kernel(
  'abstractinator.ops.segment_pool.pallas_tpu', 'segment_pool'
)
_pallas_triton = kernel(
  'abstractinator.ops.segment_pool.pallas_triton', 'segment_pool'
)
IMPLEMENTATIONS = {
  'reference': Implementation(
    reference.segment_pool,
    cost='P S Q H, P S Q H memory',
    note='dense, float32: the oracle of the tests',
  ),
  'xla': Implementation(
    xla.segment_pool,
    cost='S Q H E',
    note=(
      'sorted segment sums, a backward pass that only gathers; on GPU sums are'
      ' atomic, in any order'
    ),
    is_reproducible_on=NOT_ON_GPU,
  ),
  'pallas_tpu': Implementation(
    _pallas_tpu,
    cost='144 S Q H E on the matrix unit',
    note=(
      '`pallas` on TPU: one-hot products in one pass over the ids, forward and'
      ' backward; groups of heads where P x H x E does not fit in 40 MiB'
    ),
    platforms=('tpu',),
    dtypes=TPU_DTYPES,
  ),
  'pallas_triton': Implementation(
    _pallas_triton,
    cost='32 S Q H E on the matrix unit',
    note=(
      '`pallas` on GPU: a program of Triton for 32 slots of a head reads their'
      ' ids once and adds nothing by atomics; the backward pass only gathers,'
      ' as in `xla`. Forward as fast as `xla`, in a thirtieth of the memory,'
      ' and the same bits in two calls. Heads are at most 256 wide'
    ),
    platforms=('gpu',),
  ),
  'pallas_interpret': Implementation(
    functools.partial(_pallas_tpu, interpret=True),
    cost='as `pallas_tpu`, slow',
    note='the kernels of `pallas_tpu`, interpreted, for debugging',
    dtypes=TPU_DTYPES,
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
    implementation: Key of `IMPLEMENTATIONS`, which has the limits of each, or a
      function like `reference.segment_pool`. All but 'reference' are linear in
      S.

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
    implementation = supported(
      'segment_pool', IMPLEMENTATIONS, implementation, value_BSHE
    )
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
