"""Attention by kernels for GPU, on [B, S, H, width] as it comes."""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from abstractinator.ops.attention import pallas_gpu_kernels
from abstractinator.ops.attention.pallas_common import (
  BlockLayout,
  cost_estimate,
  dot,
  flash_attention,
  require_width,
)
from abstractinator.ops.attention.pallas_gpu_kernels import GpuKernels, Program
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


class _TritonKernels(GpuKernels):
  """Kernels for GPU through Triton.

  The grid is over heads, blocks of ids and rows: heads, which lie side by side
  in memory, are read one after the other.
  """

  def launch(self, kernel, arrays, num_own, outputs):
    """Implements `GpuKernels.launch` by loops over near blocks of a row."""
    layout, (batch, size) = self.layout, arrays[1].shape
    reach = min(size, (layout.window or size) + layout.block)
    return pl.pallas_call(
      functools.partial(
        _run,
        kernel=getattr(pallas_gpu_kernels, kernel),
        layout=layout,
        num_own=num_own,
        widths=[
          x.shape[3] if x.ndim == 4 else None for x in (*arrays, *outputs)
        ],
      ),
      out_shape=outputs,
      grid=(self.heads, size // layout.block, batch),
      in_specs=[
        self._spec(x, is_row=not 0 < i <= num_own) for i, x in enumerate(arrays)
      ],
      out_specs=[self._spec(x) for x in outputs],
      compiler_params=plt.CompilerParams(
        num_warps=_NUM_WARPS, num_stages=_NUM_STAGES
      ),
      cost_estimate=cost_estimate(
        kernel, layout, batch * self.heads * size * reach, (*arrays, *outputs)
      ),
      interpret=self.interpret,
      name=f'attention_{kernel}',
    )(*arrays)

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
    return pl.BlockSpec(
      (None, ids, None, _tile_width(x.shape[3])),
      lambda h, i, b: (b, place(i), 0 if is_shared else h, 0),
    )


def _run(*refs, kernel, layout, num_own, widths):
  """Runs one program of a kernel.

  Its references to near blocks reach over a whole row; nothing is read before
  it is asked for.
  """
  (limit_ref, _), (group_ref, _), *rest = zip(refs, widths, strict=True)
  own, near = rest[: num_own - 1], rest[num_own - 1 : -2]
  outputs, index = rest[-2:], pl.program_id(1)

  def part(ref, width):
    return ref if width is None else _tile(ref, width)

  def near_parts(near_index):
    at = pl.ds(near_index * layout.block, layout.block)
    return [part(ref.at[at], width) for ref, width in near]

  def put(number, value):
    ref, width = outputs[number]
    _put(ref, value, width)

  kernel(
    Program(
      layout=layout,
      index=index,
      limit=limit_ref[index],
      group=group_ref[...],
      own=[part(*pair) for pair in own],
      near=near_parts,
      product=_product,
      put=put,
      value_width=_tile_width(layout.value_width),
    )
  )


def _tile_width(width):
  return max(_MIN_BLOCK, pl.next_power_of_2(width))


def _product(x, y, contracting, total):
  product = dot(x, y, contracting)
  return product if total is None else total + product


def _is_inside(shape, width):
  return None if shape[1] == width else (jnp.arange(shape[1]) < width)[None]


def _tile(ref, width):
  """Returns a tile, with zeros beyond the width of a head."""
  mask = _is_inside(ref.shape, width)
  return plt.load(ref, mask=mask, other=None if mask is None else 0)


def _put(ref, value, width):
  """Writes numbers, or a tile up to the width of a head."""
  value = value.astype(ref.dtype)
  if width is None:
    ref[...] = value
  else:
    plt.store(ref, value, mask=_is_inside(ref.shape, width))
