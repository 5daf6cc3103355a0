"""Attention by kernels for Hopper GPUs, through Pallas and Mosaic GPU.

A program is one warpgroup. The copy engine of the core (TMA) brings blocks of
ids into shared memory, the next ones while one is being met; the matrix unit
(WGMMA) reads them there, and keeps sums in registers.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from abstractinator.ops.attention import pallas_gpu_kernels
from abstractinator.ops.attention.pallas_common import (
  ROWS,
  BlockLayout,
  dot,
  flash_attention,
  require_width,
)
from abstractinator.ops.attention.pallas_gpu_kernels import GpuKernels, Program
from abstractinator.types import Array

# Ids of a block, and near blocks that are in shared memory at a time, by the
# widest head that they are for. A warpgroup multiplies 64 rows at a time; two
# times as many do not fit in its registers. Three programs, and with heads of
# 128 one or two, fit in the shared memory of a core. Not measured.
_BLOCKS = {64: (64, 2), 128: (64, 2)}
# The matrix unit takes widths that are multiples of this.
_WIDTHS = 16


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
  interpret: object = False,
) -> Array:
  """Implements `api.attention` by Pallas kernels for Hopper GPUs.

  Rows are padded to full blocks, and heads to a multiple of 16.

  Args:
    q_BSHA: [B, S, H, A] queries.
    k_BSGA: [B, S, G, A] keys.
    v_BSGE: [B, S, G, E] values.
    group_BS: [B, S] int32 groups.
    window: Number of ids before itself that an id sees; None for all.
    scale: Factor on the scores.
    interpret: Parameters of Pallas' interpreter of kernels for GPU,
      `InterpretGPUParams`. It computes products of matrices by `jax.lax`, since
      it has none of transposed blocks or of registers.

  Raises:
    NotImplementedError: If a head is wider than 128.
  """
  require_width('attention', q_BSHA, v_BSGE, name='mosaic_gpu', widest=128)
  size, value_width = v_BSGE.shape[1], v_BSGE.shape[3]
  width = max(q_BSHA.shape[3], value_width)
  block, stages = next(_BLOCKS[most] for most in _BLOCKS if width <= most)
  q, k, v = (_padded(x, block) for x in (q_BSHA, k_BSGA, v_BSGE))
  group = jnp.pad(group_BS, ((0, 0), (0, -size % block)), constant_values=-1)
  layout = BlockLayout(block, q.shape[3], v.shape[3], window, scale)
  kernels = _MosaicKernels(layout, q.shape[2], interpret, stages)
  return flash_attention(q, k, v, group, kernels)[:, :size, :, :value_width]


def _padded(x, block):
  ids, width = -x.shape[1] % block, -x.shape[3] % _WIDTHS
  return jnp.pad(x, ((0, 0), (0, ids), (0, 0), (0, width)))


@dataclasses.dataclass(frozen=True)
class _MosaicKernels(GpuKernels):
  """Kernels for GPU through Mosaic GPU.

  The grid is over heads, blocks of ids and rows: heads, which lie side by side
  in memory, are read one after the other.

  Attributes:
    stages: Number of near blocks that are in shared memory at a time.
  """

  stages: int

  def launch(self, kernel, arrays, num_own, outputs):
    """Implements `GpuKernels.launch` by copies of block after block."""
    batch, size = arrays[1].shape
    own, near = arrays[1 : num_own + 1], arrays[num_own + 1 :]

    def tiles(parts, *stages):
      return [plgpu.SMEM((*stages, *self._tile(x)), x.dtype) for x in parts]

    return plgpu.kernel(
      functools.partial(self._run, kernel, num_own),
      out_type=outputs,
      scratch_types=dict(
        own_tiles=tiles(own),
        near_tiles=tiles(near, self.stages),
        out_tiles=tiles(outputs),
        own_ready=plgpu.Barrier(num_arrivals=len(own)),
        near_ready=plgpu.Barrier(
          num_arrivals=len(near), num_barriers=self.stages
        ),
      ),
      grid=(self.heads, size // self.layout.block, batch),
      grid_names=('head', 'block', 'row'),
      # Layouts in registers and in shared memory are up to the compiler.
      compiler_params=plgpu.CompilerParams(
        approx_math=True,
        lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
      ),
      interpret=self.interpret or None,
      kernel_name=f'attention_{kernel}',
    )(*arrays)

  def _tile(self, x):
    block = self.layout.block
    return (block, x.shape[3]) if x.ndim == 4 else (block,)

  def _part(self, ref, index):
    """Returns a block of a row of groups, numbers or vectors of the head."""
    row, head = lax.axis_index('row'), lax.axis_index('head')
    block = self.layout.block
    at = pl.ds(index * block, block)
    if ref.ndim == 2:
      return ref.at[row, at]
    if ref.ndim == 3:
      return ref.at[row, head, at]
    return ref.at[row, at, head if ref.shape[2] == self.heads else 0]

  def _copy(self, refs, tiles, index, ready):
    """Starts to copy a block of arrays into tiles."""
    for ref, tile in zip(refs, tiles, strict=True):
      plgpu.copy_gmem_to_smem(self._part(ref, index), tile, ready)

  def _run(
    self,
    kernel,
    num_own,
    limit_ref,
    *refs,
    own_tiles,
    near_tiles,
    out_tiles,
    own_ready,
    near_ready,
  ):
    """Runs one program of a kernel."""
    num_in = num_own + len(near_tiles)
    own, near, outputs = refs[:num_own], refs[num_own:num_in], refs[num_in:]
    index = lax.axis_index('block')
    limit = limit_ref[lax.axis_index('row'), index]
    first, last = jnp.minimum(index, limit), jnp.maximum(index, limit)

    def fetch(near_index):
      """Starts to copy a near block, if it is to be met."""
      slot = lax.rem(near_index - first, self.stages)

      @pl.when(near_index <= last)
      def _():
        tiles = [tile.at[slot] for tile in near_tiles]
        self._copy(near, tiles, near_index, near_ready.at[slot])

    def near_parts(near_index):
      # All warps are done with the block that the next copy overwrites.
      plgpu.commit_smem()
      fetch(near_index + self.stages - 1)
      slot = lax.rem(near_index - first, self.stages)
      plgpu.barrier_wait(near_ready.at[slot])
      return [tile.at[slot] for tile in near_tiles]

    self._copy(own, own_tiles, index, own_ready)
    for ahead in range(self.stages - 1):
      fetch(first + ahead)
    plgpu.barrier_wait(own_ready)
    group, *own_tiles = own_tiles
    getattr(pallas_gpu_kernels, kernel)(
      Program(
        layout=self.layout,
        index=index,
        limit=limit,
        group=group[...],
        own=own_tiles,
        near=near_parts,
        product=_interpreted if self.interpret else _product,
        put=functools.partial(_put, out_tiles),
        value_width=self.layout.value_width,
      )
    )
    plgpu.commit_smem()
    for ref, tile in zip(outputs, out_tiles, strict=True):
      plgpu.copy_smem_to_gmem(tile, self._part(ref, index))
    plgpu.wait_smem_to_gmem(0)


def _put(tiles, number, value):
  tile = tiles[number]
  tile[...] = value.astype(tile.dtype)


def _product(x, y, contracting, total):
  if contracting == ROWS:
    y = y.transpose((1, 0))
  if total is not None:
    return pl.run_state(lambda sums: plgpu.wgmma(sums, x, y))(
      plgpu.ACC.init(total)
    )

  def run(sums):
    plgpu.wgmma(sums, x, y)
    return sums[...]

  return pl.run_scoped(run, plgpu.ACC((x.shape[0], y.shape[1])))


def _interpreted(x, y, contracting, total):
  product = dot(x[...], y[...], contracting)
  return product if total is None else total + product
