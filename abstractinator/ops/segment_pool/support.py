"""What each implementation of segment pooling can take."""

from abstractinator.ops.support import (
  ANY_FLOAT,
  NOT_ON_GPU,
  PLATFORMS,
  Support,
)

SUPPORT = {
  'reference': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=PLATFORMS,
    cost='P S Q H, P S Q H memory',
    note='dense, float32: the oracle',
  ),
  'xla': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=NOT_ON_GPU,
    cost='S Q H E',
    note=(
      'sorted segment sums, a backward pass that only gathers; on GPU sums are'
      ' atomic, in any order'
    ),
  ),
  'xla_deterministic': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=PLATFORMS,
    cost='64 S Q H E',
    note='the same with sums by products of 64 ids, no scatter but the maximum',
  ),
  'pallas_tpu': Support(
    platforms=('tpu',),
    dtypes=('float32', 'bfloat16'),
    is_reproducible_on=PLATFORMS,
    cost='144 S Q H E on the matrix unit',
    note=(
      '`pallas` on TPU: one-hot products in one pass over the ids, forward and'
      ' backward; groups of heads where P x H x E does not fit in 40 MiB'
    ),
  ),
  'pallas_triton': Support(
    platforms=('gpu',),
    dtypes=ANY_FLOAT,
    is_reproducible_on=PLATFORMS,
    cost='32 S Q H E on the matrix unit',
    note=(
      '`pallas` on GPU: a program of Triton for 32 slots of a head reads their'
      ' ids once and adds nothing by atomics; the backward pass only gathers,'
      ' as in `xla`. Forward as fast as that, in a thirtieth of the memory, and'
      ' the same bits twice. Heads to 256 wide'
    ),
  ),
  'pallas_interpret': Support(
    platforms=PLATFORMS,
    dtypes=('float32', 'bfloat16'),
    is_reproducible_on=PLATFORMS,
    cost='as `pallas_tpu`, slow',
    note='the kernels of `pallas_tpu`, interpreted, for debugging',
  ),
}
