"""Attention by kernels for TPU, on [B, S, heads x width] as it comes.

Heads stay side by side in the lanes: nothing is transposed, and no head
narrower than 128 is padded in memory.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from abstractinator.ops.attention import pallas_tpu_kernels
from abstractinator.ops.attention.pallas_common import (
  cost_estimate,
  flash_attention,
  require_width,
  visible_blocks,
)
from abstractinator.ops.attention.pallas_tpu_layout import (
  MAX_BLOCKS_AT_ONCE,
  TpuLayout,
  make_layout,
)
from abstractinator.ops.attention.shapes import pad_ids
from abstractinator.types import Array


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
  interpret: bool | pltpu.InterpretParams = False,
  max_blocks_at_once: int = MAX_BLOCKS_AT_ONCE,
) -> Array:
  """Implements `api.attention` by Pallas kernels for TPU.

  `interpret` is that of `pl.pallas_call`. Blocks of keys are met one after the
  other where a block of queries sees more than `max_blocks_at_once` of them.

  Raises:
    NotImplementedError: If a head is wider than 256, or heads that share keys
      or values do not fit in the memory of a core.
  """
  require_width('attention', q_BSHA, v_BSGE)
  batch, size, heads, _ = q_BSHA.shape
  layout = make_layout(
    q_BSHA,
    k_BSGA,
    v_BSGE,
    window=window,
    scale=scale,
    max_blocks_at_once=max_blocks_at_once,
  )
  q, k, v = (
    pad_ids(x, layout.block).reshape(batch, layout.size, -1)
    for x in (q_BSHA, k_BSGA, v_BSGE)
  )
  group = pad_ids(group_BS, layout.block, -1)[:, None, None]
  out = flash_attention(q, k, v, group, _TpuKernels(layout, interpret))
  return out[:, :size].reshape(batch, size, heads, -1)


@dataclasses.dataclass(frozen=True)
class _TpuKernels:
  """Kernels for TPU, implementing `pallas_common.Kernels`.

  Vectors are [B, S, heads x width], groups [B, 1, 1, S], and numbers
  [B, programs, heads of a program, S]. The grid is over rows, groups of heads,
  blocks of ids, and steps.
  """

  layout: TpuLayout
  interpret: bool | pltpu.InterpretParams

  def limits(self, group):
    """Returns zeros if programs have one step: these do not read limits."""
    if self.layout.steps == 1:
      nothing = jnp.zeros((1, 1), jnp.int32)
      return nothing, nothing
    return visible_blocks(group[:, 0, 0], self.layout.block, self.layout.window)

  def out_shapes(self, q, v):
    x = self.layout
    out = *q.shape[:2], x.heads * x.value_width
    numbers = q.shape[0], x.programs, x.heads_per_program, x.size
    return (
      jax.ShapeDtypeStruct(out, v.dtype),
      jax.ShapeDtypeStruct(numbers, jnp.float32),
    )

  def call(self, kernel, limit, *, own, near, outputs):
    """Implements `Kernels.call` by a grid with steps."""
    layout = self.layout
    direction = 1 if kernel == 'backward_keys' else -1
    near_blocks = [
      functools.partial(self._near_block, direction, offset)
      for offset in range(layout.blocks_per_step)
    ]
    arrays = *own, *(x for x in near for _ in near_blocks)
    scratch = [(layout.block, self._lanes(x)) for x in outputs if x.ndim == 3]
    if kernel == 'forward':
      scratch = [(layout.block, layout.heads_per_program)] * 2 + scratch
    # Without a window, half of the pairs of blocks.
    pairs = layout.num_blocks * (layout.reach + 1)
    pairs -= layout.reach * (layout.reach + 1) // 2
    batch = own[0].shape[0]
    return pl.pallas_call(
      functools.partial(getattr(pallas_tpu_kernels, kernel), layout=layout),
      out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(batch, layout.programs, layout.num_blocks, layout.steps),
        in_specs=[
          *(self._spec(x) for x in own),
          *(self._spec(x, block_of) for x in near for block_of in near_blocks),
        ],
        out_specs=[self._spec(x) for x in outputs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch]
        if layout.steps > 1
        else (),
      ),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary'),
        vmem_limit_bytes=max(16 << 20, layout.bytes * 3 // 2),
      ),
      cost_estimate=cost_estimate(
        kernel,
        layout,
        batch * layout.heads * pairs * layout.block**2,
        (*arrays, *outputs),
      ),
      interpret=self.interpret,
      name=f'attention_{kernel}',
    )(limit, *arrays)

  def _near_block(self, direction, offset, b, i, step, limit_ref):
    """Returns the near block that a program meets at an offset or step."""
    layout = self.layout
    if layout.steps == 1:
      return jnp.clip(i + direction * offset, 0, layout.num_blocks - 1)
    # Steps beyond the limit stay there, so that nothing is read for them.
    if direction > 0:
      return jnp.minimum(i + step, limit_ref[b, i])
    return jnp.maximum(i - layout.reach + step, limit_ref[b, i])

  def _spec(self, x, block_of=lambda b, i, step, limit_ref: i):
    """Returns the part of an array that a program reads or writes.

    Args:
      x: Vectors, or numbers or groups per id, which have 4 axes.
      block_of: Function from row, own block, step and limits to the block of
        ids; by default the own block.
    """
    if x.ndim == 4:
      # Groups are the same for all programs.
      is_shared = x.shape[1] == 1
      return pl.BlockSpec(
        (None, None, x.shape[2], self.layout.block),
        lambda b, h, i, *at: (b, 0 if is_shared else h, 0, block_of(b, i, *at)),
      )
    return pl.BlockSpec(
      (None, self.layout.block, self._lanes(x)),
      lambda b, h, i, *at: (b, block_of(b, i, *at), h),
    )

  def _lanes(self, x):
    """Returns the lanes of one program; what heads share has one program."""
    return x.shape[2] // self.layout.programs
