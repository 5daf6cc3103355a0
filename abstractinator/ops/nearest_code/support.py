"""Limits of the implementations of code search."""

from abstractinator.ops.support import Support

SUPPORT = {
  'reference': Support(
    cost='N K C, N K memory',
    note='dense differences, float32: the oracle of the tests',
  ),
  'xla': Support(
    cost='N K C, a tile of 1024 x 4096 distances',
    note='products in float32; entries are split over the mesh axis `tensor`',
  ),
}
