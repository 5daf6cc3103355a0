"""Causal self-attention: one contract for all implementations."""

import functools
from collections.abc import Callable

import chex

from abstractinator.ops.attention import (
  cudnn,
  pallas_tpu,
  pallas_triton,
  reference,
  splash,
  xla,
)
from abstractinator.ops.attention.support import SUPPORT
from abstractinator.ops.shards import over_shards
from abstractinator.ops.support import require_supported
from abstractinator.types import Array

_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
  'reference': reference.attention,
  'xla': xla.attention,
  'pallas_tpu': pallas_tpu.attention,
  'pallas_triton': pallas_triton.attention,
  'pallas_interpret': functools.partial(pallas_tpu.attention, interpret=True),
  'cudnn': cudnn.attention,
  'splash': splash.attention,
}
# Implementations that XLA splits over a mesh by itself, better than
# `over_shards`.
_PARTITIONED = ('reference', 'xla')


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
  implementation: str,
) -> Array:
  """Computes causal self-attention inside groups, over a sliding window if any.

  Id s sees id t if 0 <= s - t <= window, that is, `window` ids before it and
  itself, and if both belong to the same group. Keys and values have H heads
  each, or one head that all of the queries share: multi-head latent attention
  has H heads of keys and one of values. An id without a group sees nothing and
  is seen by nothing; it gets zeros and zero gradients.

  Args:
    q_BSHA: [B, S, H, A] queries.
    k_BSGA: [B, S, G, A] keys, G of H or 1.
    v_BSGE: [B, S, G, E] values, G of H or 1; may differ from that of the keys.
    group_BS: [B, S] int32, a document or a segment; -1 for none.
    window: Number of ids before itself that an id sees, >= 0; None for all.
    scale: Factor on the scores.
    implementation: A key of `support.SUPPORT`, which says what each can take.
      All but 'reference', the oracle of the tests, need memory linear in S.

  Returns:
    [B, S, H, E] of the type of `v_BSGE`. Softmax is in float32.

  Raises:
    ValueError: If the implementation is unknown, the window negative, or keys
      or values have another number of heads.
    NotImplementedError: If the implementation cannot take the type or width.
  """
  chex.assert_rank([q_BSHA, k_BSGA, v_BSGE, group_BS], [4, 4, 4, 2])
  chex.assert_equal(q_BSHA.shape[-1], k_BSGA.shape[-1])
  chex.assert_equal_shape_prefix(
    [q_BSHA, k_BSGA, v_BSGE, group_BS[..., None, None]], 2
  )
  require_shared_heads(q_BSHA.shape[2], k_BSGA, v_BSGE)
  if window is not None and window < 0:
    raise ValueError(f'window: got {window}, allowed: >= 0, or None')
  args = q_BSHA, k_BSGA, v_BSGE, group_BS
  require_supported('attention', SUPPORT, implementation, *args[:3])

  def function(q, k, v, group):
    return _IMPLEMENTATIONS[implementation](
      q, k, v, group_BS=group, window=window, scale=scale
    )

  if implementation in _PARTITIONED:
    return function(*args)
  return over_shards(function, args, ('B.H.', 'B.H.', 'B.H.', 'B.'), 'B.H.')


def require_shared_heads(heads: int, *keys_and_values: Array) -> None:
  """Checks that [B, S, G, ...] keys and values have as many heads, or one.

  Args:
    heads: Number of heads of the queries.
    *keys_and_values: Arrays to check.

  Raises:
    ValueError: If an array has another number of heads.
  """
  for x in keys_and_values:
    if x.shape[2] not in (1, heads):
      raise ValueError(
        f'heads of keys and values: got {x.shape[2]}, allowed: 1 or those of'
        f' the queries ({heads})'
      )
