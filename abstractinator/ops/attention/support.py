"""Limits of the implementations of self-attention."""

from abstractinator.ops.support import NOT_ON_GPU, Support

_LINEAR = 'S (window + block) H (A + E), S H (A + E) memory'
_TPU_DTYPES = ('float32', 'bfloat16')

SUPPORT = {
  'reference': Support(
    cost='S S H (A + E), S S H memory',
    note='dense, float32: the oracle of the tests',
  ),
  'xla': Support(
    cost='S (window + block) H (A + E), S (window + block) H memory',
    note=(
      'blocks of 32 to 128 queries against the keys that they can see; without'
      ' a window, half of S S in time and S x block in memory'
    ),
  ),
  'pallas_tpu': Support(
    cost=_LINEAR,
    note=(
      '`pallas` on TPU: blocks of 128 or 256 ids; heads lie side by side in the'
      ' lanes and are neither transposed nor padded; blocks of other groups are'
      ' skipped where more than 5 are in reach. Heads are at most 256 wide; all'
      ' heads that share keys or values must fit in 64 MiB, a block of each'
    ),
    platforms=('tpu',),
    dtypes=_TPU_DTYPES,
  ),
  'pallas_triton': Support(
    cost=_LINEAR,
    note=(
      '`pallas` on GPU: blocks of 64 ids by Triton; blocks of other groups are'
      ' skipped. Heads are at most 256 wide, tiles as wide as the next power of'
      ' two; products of float32 are exact, not tf32'
    ),
    platforms=('gpu',),
  ),
  'pallas_interpret': Support(
    cost='as `pallas_tpu`, slow',
    note='the kernels of `pallas_tpu`, interpreted, for debugging',
    dtypes=_TPU_DTYPES,
  ),
  'cudnn': Support(
    cost=_LINEAR,
    note=(
      'cuDNN through `jax.nn`: no float32; 16 more numbers a head keep groups'
      ' apart, up to 65,535 groups and score differences of 64 nats; heads are'
      ' at most 240 wide, shared ones are copied'
    ),
    platforms=('gpu',),
    dtypes=('bfloat16', 'float16'),
    is_reproducible_on=NOT_ON_GPU,
  ),
  'splash': Support(
    cost=_LINEAR,
    note=(
      'the kernels of `jax.experimental.pallas.ops.tpu`: heads are transposed'
      ' to the front and padded to 128, shared ones are copied'
    ),
    platforms=('tpu',),
    dtypes=_TPU_DTYPES,
  ),
}
