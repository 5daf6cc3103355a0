"""Pooling by kernels for TPU, with their custom derivative."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from abstractinator.ops.segment_pool import pallas_kernels as kernels
from abstractinator.ops.segment_pool import pallas_plan, slot_windows
from abstractinator.types import Array

_DTYPES = ('float32', 'bfloat16')


def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  has_slot_BS: Array,
  *,
  num_slots: int,
  interpret: Any = False,
) -> Array:
  """See `api.segment_pool`. Reads values once for each query, writes once.

  `interpret` is that of `pl.pallas_call`.
  """
  if value_BSHE.dtype not in _DTYPES:
    raise NotImplementedError(
      f"segment_pool by 'pallas': got values of {value_BSHE.dtype}, allowed:"
      f' {", ".join(_DTYPES)}'
    )
  batch, size, queries, heads = score_BSQH.shape
  width = value_BSHE.shape[3]
  plan = pallas_plan.make_plan(
    size, queries, heads, width, num_slots, value_BSHE.dtype.itemsize, interpret
  )
  score = jnp.where(
    has_slot_BS[..., None, None],
    score_BSQH.astype(jnp.float32),
    kernels.NOTHING,
  )
  pad = plan.ids * plan.steps - size
  value_BSD = jnp.pad(
    value_BSHE.reshape(batch, size, heads * width),
    ((0, 0), (0, pad), (0, plan.lanes * plan.groups - heads * width)),
  )
  score = jnp.pad(
    score, ((0, 0), (0, pad), (0, 0), (0, 0)), constant_values=kernels.NOTHING
  )
  # [B, groups, Q, heads of a group, S]
  score = score.reshape(batch, -1, queries, plan.groups, plan.heads)
  score = score.transpose(0, 3, 2, 4, 1)
  slot_BS = jnp.pad(slot_BS, ((0, 0), (0, pad)), mode='edge')
  out = _pool(plan, score, value_BSD, slot_BS)
  out = out.reshape(batch, num_slots, queries, -1)[..., : heads * width]
  return out.reshape(batch, num_slots, queries, heads, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(plan, score, value_BSD, slot_BS):
  return _forward(plan, score, value_BSD, slot_BS)[0]


def _forward(plan, score, value_BSD, slot_BS):
  p, dtype = plan, value_BSD.dtype
  batch, size = slot_BS.shape
  of_ids = pl.BlockSpec(
    (None, None, None, p.heads, p.ids),
    lambda b, g, c, *_: (b, g % p.groups, g // p.groups, 0, c),
  )
  of_norm = pl.BlockSpec(
    (None, None, None, 2, p.heads, p.ids),
    lambda b, g, c, *_: (b, g % p.groups, g // p.groups, 0, 0, c),
  )
  out, norm = pl.pallas_call(
    kernels.forward,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(batch, p.queries * p.groups, p.steps),
      in_specs=[
        pl.BlockSpec((None, 1, p.ids), lambda b, g, c, *_: (b, 0, c)),
        of_ids,
        pl.BlockSpec(
          (None, p.ids, p.lanes), lambda b, g, c, *_: (b, c, g % p.groups)
        ),
        pl.BlockSpec((p.heads, p.lanes), lambda *_: (0, 0)),
      ],
      out_specs=[
        pl.BlockSpec(
          (None, p.num_slots, p.lanes), lambda b, g, c, *_: (b, 0, g)
        ),
        of_norm,
      ],
      scratch_shapes=[
        pltpu.VMEM((p.slots, p.lanes), jnp.float32),
        pltpu.VMEM((p.heads, 1), jnp.float32),
        pltpu.VMEM((p.heads, 1), jnp.float32),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(
        (batch, p.num_slots, p.queries * p.groups * p.lanes), dtype
      ),
      jax.ShapeDtypeStruct(
        (*score.shape[:3], 2, *score.shape[3:]), jnp.float32
      ),
    ],
    compiler_params=pallas_plan.parameters(p),
    cost_estimate=pallas_plan.cost(p, batch, size, dtype, products=2, passes=1),
    interpret=p.interpret,
    name='segment_pool',
  )(*_ends(slot_BS), slot_BS[:, None], score, value_BSD, _expansion(p, dtype))
  return out, (score, value_BSD, slot_BS, out, norm)


def _backward(plan, residuals, grad):
  score, value_BSD, slot_BS, out, norm = residuals
  p, dtype = plan, value_BSD.dtype
  batch, size = slot_BS.shape
  split = (batch, p.num_slots, p.queries, p.groups, p.lanes)
  delta = (out.astype(jnp.float32) * grad.astype(jnp.float32)).reshape(split)
  delta = delta[..., : p.heads * p.width].reshape(*split[:4], p.heads, p.width)
  delta = jnp.sum(delta, -1).transpose(0, 3, 2, 1, 4)
  missing = p.slots - p.num_slots
  delta = jnp.pad(delta, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0)))
  grad = jnp.pad(grad.astype(dtype), ((0, 0), (0, missing), (0, 0)))

  def step(c):
    return p.steps - 1 - c

  of_ids = pl.BlockSpec(
    (None, None, p.queries, p.heads, p.ids),
    lambda b, g, c, *_: (b, g, 0, 0, step(c)),
  )
  of_values = pl.BlockSpec(
    (None, p.ids, p.lanes), lambda b, g, c, *_: (b, step(c), g)
  )
  grad_score, grad_value = pl.pallas_call(
    kernels.backward,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(batch, p.groups, p.steps),
      in_specs=[
        pl.BlockSpec((None, 1, p.ids), lambda b, g, c, *_: (b, 0, step(c))),
        of_ids,
        pl.BlockSpec(
          (None, None, p.queries, 2, p.heads, p.ids),
          lambda b, g, c, *_: (b, g, 0, 0, 0, step(c)),
        ),
        of_values,
        pl.BlockSpec((p.heads, p.lanes), lambda *_: (0, 0)),
        pl.BlockSpec(
          (None, None, p.queries, p.slots, p.heads),
          lambda b, g, c, *_: (b, g, 0, 0, 0),
        ),
        *(
          pl.BlockSpec(
            (None, p.slots, p.lanes),
            lambda b, g, c, *_, q=q: (b, 0, q * p.groups + g),
          )
          for q in range(p.queries)
        ),
      ],
      out_specs=[of_ids, of_values],
      scratch_shapes=[pltpu.VMEM((p.queries, 2, p.heads, 1), jnp.float32)],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(score.shape, jnp.float32),
      jax.ShapeDtypeStruct(value_BSD.shape, dtype),
    ],
    compiler_params=pallas_plan.parameters(p),
    cost_estimate=pallas_plan.cost(p, batch, size, dtype, products=4, passes=2),
    interpret=p.interpret,
    name='segment_pool_backward',
  )(
    *_ends(slot_BS),
    slot_BS[:, None],
    score,
    norm,
    value_BSD,
    _expansion(p, dtype),
    delta,
    *[grad] * p.queries,
  )
  return grad_score, grad_value, None


_pool.defvjp(_forward, _backward)


def _ends(slot_BS):
  """Slots of the first and of the last id of each block."""
  return slot_BS[:, :: slot_windows.BLOCK], slot_BS[
    :, slot_windows.BLOCK - 1 :: slot_windows.BLOCK
  ]


def _expansion(plan, dtype):
  """[heads, lanes], 1 in the lanes of a head."""
  lane, head = jnp.arange(plan.lanes), jnp.arange(plan.heads)
  return (lane // plan.width == head[:, None]).astype(dtype)
