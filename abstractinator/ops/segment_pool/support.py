"""Limits of the implementations of segment pooling."""

from abstractinator.ops.support import NOT_ON_GPU, Support

_TPU_DTYPES = ('float32', 'bfloat16')

SUPPORT = {
  'reference': Support(
    cost='P S Q H, P S Q H memory',
    note='dense, float32: the oracle of the tests',
  ),
  'xla': Support(
    cost='S Q H E',
    note=(
      'sorted segment sums, a backward pass that only gathers; on GPU sums are'
      ' atomic, in any order'
    ),
    is_reproducible_on=NOT_ON_GPU,
  ),
  'xla_deterministic': Support(
    cost='64 S Q H E',
    note=(
      '`xla` with sums as matrix products over 64 ids; only the maximum is a'
      ' scatter'
    ),
  ),
  'pallas_tpu': Support(
    cost='144 S Q H E on the matrix unit',
    note=(
      '`pallas` on TPU: one-hot products in one pass over the ids, forward and'
      ' backward; groups of heads where P x H x E does not fit in 40 MiB'
    ),
    platforms=('tpu',),
    dtypes=_TPU_DTYPES,
  ),
  'pallas_triton': Support(
    cost='32 S Q H E on the matrix unit',
    note=(
      '`pallas` on GPU: a program of Triton for 32 slots of a head reads their'
      ' ids once and adds nothing by atomics; the backward pass only gathers,'
      ' as in `xla`. Forward as fast as `xla`, in a thirtieth of the memory,'
      ' and the same bits in two calls. Heads are at most 256 wide'
    ),
    platforms=('gpu',),
  ),
  'pallas_interpret': Support(
    cost='as `pallas_tpu`, slow',
    note='the kernels of `pallas_tpu`, interpreted, for debugging',
    dtypes=_TPU_DTYPES,
  ),
}
