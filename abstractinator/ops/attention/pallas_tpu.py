"""Attention by kernels for TPU, on [B, S, heads x width] as it comes.

Heads stay side by side in the lanes: nothing is transposed, and no head
narrower than 128 is padded in memory. Only the result and one number a query
are kept for the backward pass.

Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from abstractinator.ops.attention import pallas_tpu_kernels as kernels
from abstractinator.ops.attention.pallas_layout import Layout, make_layout
from abstractinator.ops.attention.visible import visible_blocks
from abstractinator.types import Array


def attention(
  q_BSHA: Array,
  k_BSGA: Array,
  v_BSGE: Array,
  *,
  group_BS: Array,
  window: int | None,
  scale: float,
  interpret: Any = False,
) -> Array:
  """See `api.attention`.

  `interpret` is that of `pl.pallas_call`.
  """
  batch, size, heads, width = q_BSHA.shape
  layout = make_layout(
    size,
    (heads, k_BSGA.shape[2], v_BSGE.shape[2]),
    (width, v_BSGE.shape[3]),
    window,
    scale,
    v_BSGE.dtype.itemsize,
  )

  def flat(x, fill=0):
    pad = ((0, 0), (0, layout.size - size)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, pad, constant_values=fill)
    return x.reshape(batch, layout.size, -1)

  group = flat(group_BS, -1).reshape(batch, 1, layout.size)
  arrays = (flat(x) for x in (q_BSHA, k_BSGA, v_BSGE))
  out = _attention(*arrays, group, layout, interpret)
  return out[:, :size].reshape(batch, size, heads, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, group, layout, interpret):
  """[B, S, heads x width], and groups [B, 1, S], to [B, S, H x E]."""
  return _forward(q, k, v, group, layout, interpret)[0]


def _forward(q, k, v, group, layout, interpret):
  own, near, row, shared = _blocks(layout, -1)
  first, _ = _visible(group, layout)
  heads, block = layout.heads_per_program, layout.block
  scratch = [
    pltpu.VMEM((block, heads), jnp.float32),
    pltpu.VMEM((block, heads), jnp.float32),
    pltpu.VMEM((block, heads * layout.value_width), jnp.float32),
  ]
  out, log_total = _call(
    kernels.forward,
    layout,
    interpret,
    first,
    inputs=[
      (q, own(layout.key_width)),
      (group, shared),
      *near(k, layout.key_heads, layout.key_width),
      *near(v, layout.value_heads, layout.value_width),
      *near(_of_keys(group), 'group', 0),
    ],
    outputs=[
      (_like(q, layout.heads * layout.value_width, v.dtype),
       own(layout.value_width)),
      (_per_head(q, layout), row),
    ],
    scratch=scratch,
    products=(1, 1),
  )  # fmt: skip
  return out, (q, k, v, group, out, log_total)


def _backward(layout, interpret, saved, grad):
  q, k, v, group, out, log_total = saved
  first, last = _visible(group, layout)
  own, near, row, shared = _blocks(layout, -1)
  heads, block = layout.heads_per_program, layout.block
  grad_q, mean = _call(
    kernels.backward_queries,
    layout,
    interpret,
    first,
    inputs=[
      (q, own(layout.key_width)),
      (group, shared),
      (grad, own(layout.value_width)),
      (out, own(layout.value_width)),
      (log_total, row),
      *near(k, layout.key_heads, layout.key_width),
      *near(v, layout.value_heads, layout.value_width),
      *near(_of_keys(group), 'group', 0),
    ],
    outputs=[
      (_like(q, q.shape[2], q.dtype), own(layout.key_width)),
      (_per_head(q, layout), row),
    ],
    scratch=[pltpu.VMEM((block, heads * layout.key_width), jnp.float32)],
    products=(2, 1),
  )
  own, near, row, shared = _blocks(layout, 1)
  key_lanes = own(layout.key_width, layout.key_heads)
  value_lanes = own(layout.value_width, layout.value_heads)
  grad_k, grad_v = _call(
    kernels.backward_keys,
    layout,
    interpret,
    last,
    inputs=[
      (k, key_lanes),
      (v, value_lanes),
      (_of_keys(group), shared),
      *near(q, layout.heads, layout.key_width),
      *near(grad, layout.heads, layout.value_width),
      *near(log_total, 'row', 0),
      *near(mean, 'row', 0),
      *near(group, 'group', 0),
    ],
    outputs=[
      (_like(k, k.shape[2], k.dtype), key_lanes),
      (_like(v, v.shape[2], v.dtype), value_lanes),
    ],
    scratch=[
      pltpu.VMEM(key_lanes.block_shape[1:], jnp.float32),
      pltpu.VMEM(value_lanes.block_shape[1:], jnp.float32),
    ],
    products=(2, 2),
  )
  return grad_q, grad_k, grad_v, None


_attention.defvjp(_forward, _backward)


def _blocks(layout: Layout, direction: int):
  """Which part of an array a program reads or writes.

  The grid is over rows, groups of heads, blocks, and steps. A scalar argument
  says of each block the farthest one that has something to see; steps beyond
  stay where they are, so that nothing is read for them.

  Args:
    layout: Of the arrays.
    direction: -1 where near blocks are those before, 1 where those after.

  Returns:
    Functions to the specs of a program's own block and of near blocks; specs of
    its own numbers per query and head, and of its own groups.
  """
  block, heads = layout.block, layout.heads_per_program
  end = layout.num_blocks - 1

  def at(offset, b, i, step, limit_ref):
    if layout.steps == 1:
      return jnp.clip(i + direction * offset, 0, end)
    if direction > 0:
      return jnp.minimum(i + step, limit_ref[b, i])
    return jnp.maximum(i - layout.reach + step, limit_ref[b, i])

  def lanes(width, count):
    is_shared = count == 1 < layout.heads
    shape = (None, block, width if is_shared else width * heads)
    return shape, (lambda h: 0) if is_shared else (lambda h: h)

  def own(width, count=layout.heads):
    shape, lane = lanes(width, count)
    return pl.BlockSpec(shape, lambda b, h, i, t, _: (b, i, lane(h)))

  def near(x, kind, width):
    def spec(offset):
      if kind == 'group':
        return pl.BlockSpec(
          (None, 1, block),
          lambda b, h, i, t, ref: (b, 0, at(offset, b, i, t, ref)),
        )
      if kind == 'row':
        return pl.BlockSpec(
          (None, None, heads, block),
          lambda b, h, i, t, ref: (b, h, 0, at(offset, b, i, t, ref)),
        )
      shape, lane = lanes(width, kind)
      return pl.BlockSpec(
        shape, lambda b, h, i, t, ref: (b, at(offset, b, i, t, ref), lane(h))
      )

    return [(x, spec(offset)) for offset in range(layout.blocks_per_step)]

  row = pl.BlockSpec(
    (None, None, heads, block), lambda b, h, i, t, _: (b, h, 0, i)
  )
  shared = pl.BlockSpec((None, 1, block), lambda b, h, i, t, _: (b, 0, i))
  return own, near, row, shared


def _call(
  kernel, layout, interpret, limit, *, inputs, outputs, scratch, products
):
  """Runs a kernel over all blocks, and tells XLA what it costs."""
  arrays, in_specs = zip(*inputs, strict=True)
  shapes, out_specs = zip(*outputs, strict=True)
  batch = arrays[0].shape[0]
  programs = layout.heads // layout.heads_per_program
  # Half of the pairs, where there is no window.
  pairs = layout.num_blocks * (layout.reach + 1)
  pairs -= layout.reach * (layout.reach + 1) // 2
  scores = batch * layout.heads * pairs * layout.block**2
  of_keys, of_values = products
  widths = of_keys * layout.key_width + of_values * layout.value_width
  is_in_steps = layout.steps > 1
  return pl.pallas_call(
    functools.partial(kernel, layout=layout),
    out_shape=shapes,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(batch, programs, layout.num_blocks, layout.steps),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=scratch if is_in_steps else (),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=max(16 << 20, layout.bytes * 3 // 2),
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * scores * widths,
      transcendentals=scores,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes)),
    ),
    interpret=interpret,
    name=f'attention_{kernel.__name__}',
  )(limit, *arrays)


def _visible(group, layout):
  """[B, n] int32: first block that each may see, and last that may see it.

  Not read, and not computed, where a program has one step.
  """
  if layout.steps == 1:
    nothing = jnp.zeros((1, 1), jnp.int32)
    return nothing, nothing
  return visible_blocks(group[:, 0], layout.block, layout.window)


def _of_keys(group):
  """What belongs to no group is equal to nothing, then."""
  return jnp.where(group < 0, -2, group)


def _like(x, width, dtype):
  return jax.ShapeDtypeStruct((*x.shape[:2], width), dtype)


def _per_head(x, layout):
  """One float32 a query and head, the heads of a program side by side."""
  programs = layout.heads // layout.heads_per_program
  shape = (x.shape[0], programs, layout.heads_per_program, layout.size)
  return jax.ShapeDtypeStruct(shape, jnp.float32)
