"""Limits of the implementations of segment cross-attention."""

from abstractinator.ops.support import NOT_ON_GPU, Support

SUPPORT = {
  'reference': Support(
    cost='T U H (A + E), T U H memory',
    note='dense, float32: the oracle of the tests',
  ),
  'gather': Support(
    cost='(lookback + 1) T H (A + E)',
    note=(
      'fetches the rows that a query sees, whatever the order of the slots; a'
      ' lookback of 0 is one fetch'
    ),
    is_reproducible_on=NOT_ON_GPU,
  ),
  'halo': Support(
    cost='(128 + lookback) T H (A + E) on the matrix unit',
    note=(
      '128 queries at a time against the run of slots that they see; slots rise'
      ' by at most one from a query to the next, and a query out of reach gets'
      ' zeros; a lookback of 0 is one fetch'
    ),
    is_reproducible_on=NOT_ON_GPU,
  ),
}
