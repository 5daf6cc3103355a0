"""Attention by kernels for GPU, on [B, S, H, width] as it comes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from abstractinator.ops.attention import pallas_triton_kernels
from abstractinator.ops.attention.pallas_common import (
  BlockLayout,
  cost_estimate,
  flash_attention,
  require_width,
  visible_blocks,
)
from abstractinator.ops.attention.shapes import pad_ids
from abstractinator.types import Array

# Ids of a block, such that what a program holds fits in its registers; warps of
# 32 threads of a program; tiles that are read ahead.
_BLOCK, _NUM_WARPS, _NUM_STAGES = 64, 4, 2
# Smallest side of a product of the matrix units.
_MIN_BLOCK = 16
# Largest number of ids of a block times width of a head in float32: the matrix
# units do not take float32, so products are unrolled number by number, and
# larger ones compile for minutes.
_MAX_UNROLLED = 2048


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
  interpret: bool = False,
) -> Array:
  """Implements `api.attention` by Pallas kernels for GPU, through Triton.

  `interpret` is that of `pl.pallas_call`.

  Raises:
    NotImplementedError: If a head is wider than 256.
  """
  require_width('attention', q_BSHA, v_BSGE)
  size, widths = q_BSHA.shape[1], (q_BSHA.shape[3], v_BSGE.shape[3])
  block = min(_BLOCK, pl.next_power_of_2(size))
  if q_BSHA.dtype == jnp.float32:
    block = min(block, _MAX_UNROLLED // pl.next_power_of_2(max(widths)))
  block = max(block, _MIN_BLOCK)
  q, k, v = (pad_ids(x, block) for x in (q_BSHA, k_BSGA, v_BSGE))
  layout = BlockLayout(block, *widths, window, scale)
  kernels = _TritonKernels(layout, q.shape[2], interpret)
  group = pad_ids(group_BS, block, -1)
  return flash_attention(q, k, v, group, kernels)[:, :size]


@dataclasses.dataclass(frozen=True)
class _TritonKernels:
  """Kernels for GPU, implementing `pallas_common.Kernels`.

  Vectors are [B, S, heads, width], groups [B, S] and numbers [B, H, S]. The
  grid is over heads, blocks of ids and rows: heads, which lie side by side in
  memory, are read one after the other.
  """

  layout: BlockLayout
  heads: int
  interpret: bool

  def limits(self, group):
    return visible_blocks(group, self.layout.block, self.layout.window)

  def out_shapes(self, q, v):
    batch, size, heads, _ = q.shape
    return (
      jax.ShapeDtypeStruct((batch, size, heads, v.shape[3]), v.dtype),
      jax.ShapeDtypeStruct((batch, heads, size), jnp.float32),
    )

  def call(self, kernel, limit, *, own, near, outputs):
    """Implements `Kernels.call` by loops over the near blocks of a row.

    An output that heads share is the sum of float32 parts, one of each head.
    """
    layout = self.layout
    arrays = limit, *own, *near
    parts = [self._per_head(x) for x in outputs]
    batch, size = own[0].shape
    reach = min(size, (layout.window or size) + layout.block)
    results = pl.pallas_call(
      functools.partial(getattr(pallas_triton_kernels, kernel), layout=layout),
      out_shape=parts,
      grid=(self.heads, size // layout.block, batch),
      in_specs=[
        self._spec(limit, is_row=True),
        *(self._spec(x) for x in own),
        *(self._spec(x, is_row=True) for x in near),
      ],
      out_specs=[self._spec(x) for x in parts],
      compiler_params=plt.CompilerParams(
        num_warps=_NUM_WARPS, num_stages=_NUM_STAGES
      ),
      cost_estimate=cost_estimate(
        kernel, layout, batch * self.heads * size * reach, (*arrays, *parts)
      ),
      interpret=self.interpret,
      name=f'attention_{kernel}',
    )(*arrays)
    return [
      jnp.sum(part, axis=2, keepdims=True).astype(x.dtype)
      if part.shape != x.shape
      else part
      for part, x in zip(results, outputs, strict=True)
    ]

  def _per_head(self, x):
    if x.ndim < 4 or x.shape[2] == self.heads:
      return jax.ShapeDtypeStruct(x.shape, x.dtype)
    shape = *x.shape[:2], self.heads, x.shape[3]
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  def _spec(self, x, *, is_row=False):
    """Returns the part of limits, groups, numbers or vectors for a program.

    The part is the program's own block, or with `is_row` the whole row.
    """
    ids = x.shape[1 if x.ndim == 4 else -1] if is_row else self.layout.block

    def place(i):
      return 0 if is_row else i

    if x.ndim == 2:
      return pl.BlockSpec((None, ids), lambda h, i, b: (b, place(i)))
    if x.ndim == 3:
      return pl.BlockSpec((None, None, ids), lambda h, i, b: (b, h, place(i)))
    is_shared = x.shape[2] < self.heads
    width = max(_MIN_BLOCK, pl.next_power_of_2(x.shape[3]))
    return pl.BlockSpec(
      (None, ids, None, width),
      lambda h, i, b: (b, place(i), 0 if is_shared else h, 0),
    )
