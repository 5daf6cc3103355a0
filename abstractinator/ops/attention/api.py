"""The one entry to self-attention, whatever computes it."""

import chex

from abstractinator.ops.attention import reference, xla
from abstractinator.types import Array

_IMPLEMENTATIONS = {'reference': reference.attention, 'xla': xla.attention}


def attention(
  q_BSHA: Array,
  k_BSHA: Array,
  v_BSHE: Array,
  *,
  group_BS: Array,
  window: int,
  scale: float,
  implementation: str,
) -> Array:
  """Causal self-attention over a sliding window, inside groups.

  Id s sees id t if 0 <= s - t <= window, that is, `window` ids before it and
  itself, and if both belong to the same group. An id of no group sees nothing
  and is seen by nothing; it gets zeros and zero gradients.

  Args:
    q_BSHA: [B, S, H, A] queries.
    k_BSHA: [B, S, H, A] keys.
    v_BSHE: [B, S, H, E] values.
    group_BS: [B, S] int32, a document or a segment; -1 for none.
    window: How many ids before itself an id sees, >= 0.
    scale: Factor on the scores.
    implementation: 'xla' has cost and memory linear in S; 'reference' is dense,
      the oracle of the tests.

  Returns:
    [B, S, H, E] of the type of `v_BSHE`. Softmax is in float32.

  Raises:
    ValueError: If the implementation is unknown or the window negative.
  """
  chex.assert_rank([q_BSHA, k_BSHA, v_BSHE, group_BS], [4, 4, 4, 2])
  chex.assert_equal_shape([q_BSHA, k_BSHA])
  chex.assert_equal_shape_prefix([q_BSHA, v_BSHE, group_BS[..., None, None]], 2)
  if window < 0:
    raise ValueError(f'window: got {window}, allowed: >= 0')
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f'implementation: got {implementation!r}, allowed:'
      f' {", ".join(_IMPLEMENTATIONS)}'
    )
  return _IMPLEMENTATIONS[implementation](
    q_BSHA, k_BSHA, v_BSHE, group_BS=group_BS, window=window, scale=scale
  )
