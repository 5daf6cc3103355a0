"""Attention by kernels for GPU, on [B, S, H, width] as it comes.

Only the result and one number a query are kept for the backward pass.

Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithms 1 and 2.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from abstractinator.ops.attention import pallas_triton_kernels as kernels
from abstractinator.ops.attention.visible import visible_blocks
from abstractinator.types import Array

# What matrix units multiply at least.
_MIN_BLOCK = 16
_MAX_WIDTH = 256
# Products of float32 do not go there but are unrolled, a number at a time: ids
# of a block times the width of a head, beyond which that compiles for minutes.
_MAX_UNROLLED = 2048


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How a kernel runs: what fits in the registers of a program.

  Attributes:
    block: Ids of a block, of queries and of keys.
    num_warps: Groups of 32 threads of a program.
    num_stages: Tiles in flight.
  """

  block: int
  num_warps: int
  num_stages: int


_TILINGS = {
  kernels.forward: Tiling(64, 4, 2),
  kernels.backward_queries: Tiling(64, 4, 2),
  kernels.backward_keys: Tiling(64, 4, 2),
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What does not change from program to program.

  Attributes:
    block: Ids of a block, which each kernel has its own of.
    key_width: A.
    value_width: E.
    window: How many ids before itself an id sees; None for all.
    scale: Factor on the scores.
    is_unrolled: Whether products are of float32.
    interpret: Of `pl.pallas_call`.
  """

  block: int
  key_width: int
  value_width: int
  window: int | None
  scale: float
  is_unrolled: bool
  interpret: bool


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
  """See `api.attention`.

  `interpret` is that of `pl.pallas_call`.
  """
  size, widest = q_BSHA.shape[1], max(q_BSHA.shape[3], v_BSGE.shape[3])
  if widest > _MAX_WIDTH:
    raise NotImplementedError(
      f"attention by 'pallas': got heads {widest} wide, allowed: at most"
      f' {_MAX_WIDTH}'
    )
  plan = Plan(
    block=0,
    key_width=q_BSHA.shape[3],
    value_width=v_BSGE.shape[3],
    window=window,
    scale=scale,
    is_unrolled=q_BSHA.dtype == jnp.float32,
    interpret=interpret,
  )
  block = max(_tiled(kernel, plan, size).block for kernel in _TILINGS)

  def whole(x, fill=0):
    pad = ((0, 0), (0, -size % block)) + ((0, 0),) * (x.ndim - 2)
    return jnp.pad(x, pad, constant_values=fill)

  arrays = (whole(x) for x in (q_BSHA, k_BSGA, v_BSGE))
  return _attention(*arrays, whole(group_BS, -1), plan)[:, :size]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, group, plan):
  """[B, S, H or 1, width], and groups [B, S], to [B, S, H, E]."""
  return _forward(q, k, v, group, plan)[0]


def _forward(q, k, v, group, plan):
  plan = _tiled(kernels.forward, plan, q.shape[1])
  own, row, number = _specs(plan, q.shape)
  first, _ = visible_blocks(group, plan.block, plan.window)
  out, log_total = _call(
    kernels.forward,
    plan,
    first,
    group,
    inputs=[(q, own(q)), (k, row(k)), (v, row(v))],
    outputs=[
      (_like(q, plan.value_width, v.dtype), own(q, plan.value_width)),
      (_per_query(q), number),
    ],
    products=(1, 1),
  )
  return out, (q, k, v, group, out, log_total)


def _backward(plan, saved, grad):
  grad_q, mean = _backward_queries(plan, saved, grad)
  return grad_q, *_backward_keys(plan, saved, grad, mean), None


def _backward_queries(plan, saved, grad):
  q, k, v, group, out, log_total = saved
  plan = _tiled(kernels.backward_queries, plan, q.shape[1])
  own, row, number = _specs(plan, q.shape)
  first, _ = visible_blocks(group, plan.block, plan.window)
  return _call(
    kernels.backward_queries,
    plan,
    first,
    group,
    inputs=[
      (q, own(q)),
      (k, row(k)),
      (v, row(v)),
      (grad, own(grad)),
      (out, own(out)),
      (log_total, number),
    ],
    outputs=[
      (_like(q, plan.key_width, q.dtype), own(q)),
      (_per_query(q), number),
    ],
    products=(2, 1),
  )


def _backward_keys(plan, saved, grad, mean):
  q, k, v, group, _, log_total = saved
  plan = _tiled(kernels.backward_keys, plan, q.shape[1])
  own, row, _ = _specs(plan, q.shape)
  _, last = visible_blocks(group, plan.block, plan.window)
  numbers = pl.BlockSpec((None, None, q.shape[1]), lambda h, i, b: (b, h, 0))

  def of_head(x):
    """Parts of a gradient from each head, where heads share it."""
    dtype = x.dtype if x.shape[2] == q.shape[2] else jnp.float32
    return _like(q, x.shape[3], dtype), own(q, x.shape[3])

  grad_k, grad_v = _call(
    kernels.backward_keys,
    plan,
    last,
    group,
    inputs=[
      (q, row(q)),
      (k, own(k)),
      (v, own(v)),
      (grad, row(grad)),
      (log_total, numbers),
      (mean, numbers),
    ],
    outputs=[of_head(k), of_head(v)],
    products=(2, 2),
  )

  def together(part, x):
    if x.shape[2] < part.shape[2]:
      part = jnp.sum(part, axis=2, keepdims=True)
    return part.astype(x.dtype)

  return together(grad_k, k), together(grad_v, v)


_attention.defvjp(_forward, _backward)


def _tiled(kernel, plan, size):
  """The plan with the blocks of a kernel, no longer than a row."""
  block = min(_TILINGS[kernel].block, pl.next_power_of_2(size))
  if plan.is_unrolled:
    widest = pl.next_power_of_2(max(plan.key_width, plan.value_width))
    block = min(block, _MAX_UNROLLED // widest)
  return dataclasses.replace(plan, block=max(block, _MIN_BLOCK))


def _specs(plan, shape):
  """Which part of an array a program reads or writes.

  The grid is over heads, blocks and rows: what lies side by side in memory is
  read at a time.

  Args:
    plan: Of the arrays.
    shape: Of the queries.

  Returns:
    Functions from an array to the specs of a program's own block and of the
    whole row; a spec of its own numbers, one a query.
  """
  size, heads = shape[1:3]

  def spec(x, width, ids, index):
    head = (lambda h: 0) if x.shape[2] < heads else (lambda h: h)
    return pl.BlockSpec(
      (None, ids, None, max(_MIN_BLOCK, pl.next_power_of_2(width))),
      lambda h, i, b: (b, index(i), head(h), 0),
    )

  def own(x, width=None):
    return spec(x, width or x.shape[3], plan.block, lambda i: i)

  def row(x):
    return spec(x, x.shape[3], size, lambda i: 0)

  number = pl.BlockSpec((None, None, plan.block), lambda h, i, b: (b, h, i))
  return own, row, number


def _call(kernel, plan, limit, group, *, inputs, outputs, products):
  """Runs a kernel over all blocks, and tells XLA what it costs."""
  arrays, in_specs = zip(*inputs, strict=True)
  shapes, out_specs = zip(*outputs, strict=True)
  batch, size, heads = arrays[0].shape[:3]
  num_blocks = size // plan.block
  of_keys, of_values = products
  widths = of_keys * plan.key_width + of_values * plan.value_width
  scores = batch * heads * size * min(size, (plan.window or size) + plan.block)
  whole = [
    pl.BlockSpec((None, x.shape[1]), lambda h, i, b: (b, 0))
    for x in (limit, group)
  ]
  return pl.pallas_call(
    functools.partial(kernel, plan=plan),
    out_shape=shapes,
    grid=(heads, num_blocks, batch),
    in_specs=[*whole, *in_specs],
    out_specs=out_specs,
    compiler_params=plt.CompilerParams(
      num_warps=_TILINGS[kernel].num_warps,
      num_stages=_TILINGS[kernel].num_stages,
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * scores * widths,
      transcendentals=scores,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes)),
    ),
    interpret=plan.interpret,
    name=f'attention_{kernel.__name__}',
  )(limit, group, *arrays)


def _like(x, width, dtype):
  return jax.ShapeDtypeStruct((*x.shape[:3], width), dtype)


def _per_query(q):
  """One float32 a query and head."""
  batch, size, heads, _ = q.shape
  return jax.ShapeDtypeStruct((batch, heads, size), jnp.float32)
