"""What each implementation of code search can take."""

from abstractinator.ops.support import ANY_FLOAT, PLATFORMS, Support

SUPPORT = {
  'reference': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=PLATFORMS,
    cost='N K C, N K memory',
    note='dense differences, float32: the oracle',
  ),
  'xla': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=PLATFORMS,
    cost='N K C, a tile of 1024 x 4096 distances',
    note='products in float32; entries are split over the mesh axis `tensor`',
  ),
}
