"""Causal self-attention: one contract for all implementations."""

import functools

import chex

from abstractinator.ops.attention import cudnn, reference, xla
from abstractinator.ops.shards import over_shards
from abstractinator.ops.support import (
  NOT_ON_GPU,
  TPU_DTYPES,
  Implementation,
  kernel,
  supported,
)
from abstractinator.types import Array

_LINEAR = 'S (window + block) H (A + E), S H (A + E) memory'
_pallas_tpu = kernel('abstractinator.ops.attention.pallas_tpu', 'attention')
_pallas_triton = kernel(
  'abstractinator.ops.attention.pallas_triton', 'attention'
)
# Not every jax has it.
_mosaic_gpu = kernel(
  'abstractinator.ops.attention.pallas_mosaic_gpu', 'attention'
)
IMPLEMENTATIONS = {
  'reference': Implementation(
    reference.attention,
    cost='S S H (A + E), S S H memory',
    note='dense, float32: the oracle of the tests',
  ),
  'xla': Implementation(
    xla.attention,
    cost='S (window + block) H (A + E), S (window + block) H memory',
    note=(
      'blocks of 32 to 128 queries against the keys that they can see; without'
      ' a window, half of S S in time and S x block in memory'
    ),
  ),
  'pallas_tpu': Implementation(
    _pallas_tpu,
    cost=_LINEAR,
    note=(
      '`pallas` on TPU: blocks of 128 or 256 ids; heads lie side by side in the'
      ' lanes and are neither transposed nor padded; blocks of other groups are'
      ' skipped where more than 5 are in reach. Heads are at most 256 wide; all'
      ' heads that share keys or values must fit in 64 MiB, a block of each'
    ),
    platforms=('tpu',),
    dtypes=TPU_DTYPES,
  ),
  'pallas_triton': Implementation(
    _pallas_triton,
    cost=_LINEAR,
    note=(
      '`pallas` on GPU: blocks of 64 ids by Triton; blocks of other groups are'
      ' skipped. Heads are at most 256 wide, tiles as wide as the next power of'
      ' two; products of float32 are exact, not tf32'
    ),
    platforms=('gpu',),
  ),
  'pallas_interpret': Implementation(
    functools.partial(_pallas_tpu, interpret=True),
    cost='as `pallas_tpu`, slow',
    note='the kernels of `pallas_tpu`, interpreted, for debugging',
    dtypes=TPU_DTYPES,
  ),
  'mosaic_gpu': Implementation(
    _mosaic_gpu,
    cost=_LINEAR,
    note=(
      'not measured: the arithmetic of `pallas_triton` through Mosaic GPU, for'
      ' Hopper alone; no float32. Heads are at most 128 wide, padded to a'
      ' multiple of 16'
    ),
    platforms=('gpu',),
    dtypes=('bfloat16', 'float16'),
    is_reproducible_on=NOT_ON_GPU,
  ),
  'cudnn': Implementation(
    cudnn.attention,
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
    implementation: Key of `IMPLEMENTATIONS`, which says what each can take. All
      but 'reference' need memory linear in S.

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
  attend = supported('attention', IMPLEMENTATIONS, implementation, *args[:3])

  def function(q, k, v, group):
    return attend(q, k, v, group_BS=group, window=window, scale=scale)

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
