"""What each implementation of segment cross-attention can take."""

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
    cost='T U H (A + E), T U H memory',
    note='dense, float32: the oracle',
  ),
  'gather': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=NOT_ON_GPU,
    cost='(lookback + 1) T H (A + E)',
    note=(
      'fetches the rows a query sees, in any order of the slots; a lookback of'
      ' 0 is one fetch'
    ),
  ),
  'halo': Support(
    platforms=PLATFORMS,
    dtypes=ANY_FLOAT,
    is_reproducible_on=NOT_ON_GPU,
    cost='(128 + lookback) T H (A + E) on the matrix unit',
    note=(
      '128 queries at a time against the run of slots that they see; slots rise'
      ' by at most one from a query to the next, one out of reach gets zeros; a'
      ' lookback of 0 is one fetch'
    ),
  ),
}
