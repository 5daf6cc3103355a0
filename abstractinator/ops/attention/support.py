"""What each implementation of self-attention can take."""

from abstractinator.ops.support import (
  ANY_FLOAT,
  PLATFORMS,
  Support,
)

_COST = 'S (window + block) H (A + E), S H (A + E) memory'

SUPPORT = {
  'reference': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=PLATFORMS,
    cost='S S H (A + E), S S H memory',
    note='dense, float32: the oracle',
  ),
  'xla': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=PLATFORMS,
    cost='S (window + block) H (A + E), S (window + block) H memory',
    note=(
      'blocks of 32 to 128 queries against the keys that they can see; without'
      ' a window, half of S S in time and S x block in memory'
    ),
  ),
  'pallas_tpu': Support(
    platforms=('tpu',),
    dtypes=('float32', 'bfloat16'),
    is_reproducible_on=PLATFORMS,
    cost=_COST,
    note=(
      '`pallas` on TPU: blocks of 128 or 256, heads side by side in the lanes,'
      ' none transposed or padded; blocks of other groups are skipped where'
      ' more than 5 are in reach. Heads to 256 wide; those that share keys or'
      ' values must fit in 64 MiB, 128 or 256 ids of all of them'
    ),
  ),
  'pallas_triton': Support(
    platforms=('gpu',),
    dtypes=ANY_FLOAT,
    is_reproducible_on=PLATFORMS,
    cost=_COST,
    note=(
      '`pallas` on GPU: blocks of 64 by Triton, blocks of other groups are'
      ' skipped. Heads to 256 wide, tiles as wide as the next power of two;'
      ' products of float32 are exact, not tf32'
    ),
  ),
  'pallas_interpret': Support(
    platforms=PLATFORMS,
    dtypes=('float32', 'bfloat16'),
    is_reproducible_on=PLATFORMS,
    cost='as `pallas_tpu`, slow',
    note='the kernels of `pallas_tpu`, interpreted, for debugging',
  ),
  'cudnn': Support(
    platforms=('gpu',),
    dtypes=('bfloat16', 'float16'),
    is_reproducible_on=('cpu', 'tpu'),
    cost=_COST,
    note=(
      'cuDNN by `jax.nn`: no float32, 16 numbers a head more, which keep groups'
      ' apart up to 65,535 of them and 64 nats; heads to 240 wide, shared ones'
      ' are copied'
    ),
  ),
  'splash': Support(
    platforms=('tpu',),
    dtypes=('float32', 'bfloat16'),
    is_reproducible_on=PLATFORMS,
    cost=_COST,
    note=(
      'the kernels of `jax.experimental.pallas.ops.tpu`: heads are transposed'
      ' to the front and padded to 128, shared ones are copied'
    ),
  ),
}
