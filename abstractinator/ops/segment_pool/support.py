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
  'pallas': Support(
    platforms=('tpu',),
    dtypes=('float32', 'bfloat16'),
    is_reproducible_on=PLATFORMS,
    cost='144 S Q H E on the matrix unit',
    note=(
      'one-hot products in one pass over the ids, forward and backward; groups'
      ' of heads where P x H x E does not fit in 40 MiB. Not on GPU: it asks'
      ' for steps in order and memory kept between them, which kernels there do'
      ' not have, and the sums of `xla` move no more bytes'
    ),
  ),
  'pallas_interpret': Support(
    platforms=PLATFORMS,
    dtypes=('float32', 'bfloat16'),
    is_reproducible_on=PLATFORMS,
    cost='as `pallas`, slow',
    note='the kernel of `pallas`, interpreted, for debugging',
  ),
}
