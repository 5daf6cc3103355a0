"""Public entry to the search for the nearest code."""

import chex

from abstractinator.ops.nearest_code import reference, xla
from abstractinator.ops.nearest_code.support import SUPPORT
from abstractinator.ops.support import require_supported
from abstractinator.types import Array

_IMPLEMENTATIONS = {
  'reference': reference.nearest_code,
  'xla': xla.nearest_code,
}


def nearest_code(
  x_NC: Array,
  codebook_KC: Array,
  *,
  implementation: str,
  forbidden: tuple[int, ...] = (),
) -> Array:
  """Finds the codebook entry at the smallest Euclidean distance.

  Args:
    x_NC: Vectors, [N, C] of any float type.
    codebook_KC: Entries, [K, C] float32.
    implementation: Name of the implementation: 'xla' goes over the vectors in
      tiles, so that memory does not grow as N K; 'reference' is dense, the
      oracle of the tests.
    forbidden: Entries that are never found; at least one is left.

  Returns:
    [N] int32 in 0..K-1, the lowest among equally near entries. Distances are in
    float32.

  Raises:
    ValueError: If the implementation is unknown.
  """
  chex.assert_rank([x_NC, codebook_KC], 2)
  chex.assert_equal_shape_suffix([x_NC, codebook_KC], 1)
  require_supported('nearest_code', SUPPORT, implementation)
  return _IMPLEMENTATIONS[implementation](x_NC, codebook_KC, forbidden)
