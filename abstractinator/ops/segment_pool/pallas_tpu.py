"""Pooling by kernels for TPU, with their custom derivative."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from abstractinator.ops.segment_pool import pallas_kernels as kernels
from abstractinator.types import Array

_LANES = 128
# Bytes that a kernel may hold. The smallest memory of a core that it is meant
# for is 64 MiB (v5p, 7x); the compiler needs the rest.
_MAX_BYTES = 40 << 20
_ROOM_BYTES = 16 << 20


def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  has_slot_BS: Array,
  *,
  num_slots: int,
  step_blocks: int = 4,
  max_bytes: int = _MAX_BYTES,
  interpret: bool | pltpu.InterpretParams = False,
) -> Array:
  """Pools like `reference.segment_pool`; values are read once per query.

  Further arguments are `step_blocks`, the blocks of 128 ids of a step, of which
  4 are enough to hide its overhead; `max_bytes`, which a kernel may hold; and
  `interpret`, the mode of interpretation of `pl.pallas_call`.

  Raises:
    ValueError: If no group of heads fits in `max_bytes`.
  """
  batch, size, queries, heads = score_BSQH.shape
  width = value_BSHE.shape[3]
  tiling = make_tiling(
    (size, queries, heads, width, num_slots),
    value_BSHE.dtype.itemsize,
    step_blocks=step_blocks,
    max_bytes=max_bytes,
    interpret=interpret,
  )
  score = jnp.where(
    has_slot_BS[..., None, None],
    score_BSQH.astype(jnp.float32),
    kernels.NOTHING,
  )
  pad = tiling.ids * tiling.steps - size
  value_BSD = jnp.pad(
    value_BSHE.reshape(batch, size, heads * width),
    ((0, 0), (0, pad), (0, tiling.lanes * tiling.groups - heads * width)),
  )
  score = jnp.pad(
    score, ((0, 0), (0, pad), (0, 0), (0, 0)), constant_values=kernels.NOTHING
  )
  # [B, groups, Q, heads of a group, S]
  score = score.reshape(batch, -1, queries, tiling.groups, tiling.heads)
  score = score.transpose(0, 3, 2, 4, 1)
  slot_BS = jnp.pad(slot_BS, ((0, 0), (0, pad)), mode='edge')
  out = _pool(tiling, score, value_BSD, slot_BS)
  out = out.reshape(batch, num_slots, queries, -1)[..., : heads * width]
  return out.reshape(batch, num_slots, queries, heads, width)


@dataclasses.dataclass(frozen=True)
class PoolTiling:
  """Division of a call into the steps and groups of heads of the kernels.

  Attributes:
    ids: Ids of a step.
    steps: Steps of a row.
    queries: Number of queries, Q.
    groups: Groups of heads.
    heads: Heads of a group.
    lanes: Lanes of a group, a multiple of 128.
    width: Lanes of a head.
    slots: Number of slots, rounded up to a multiple of `kernels.ALIGNMENT`.
    num_slots: Number of slots, P.
    memory_bytes: Bytes that the larger of the two kernels holds.
    interpret: Mode of interpretation, see `pl.pallas_call`.
  """

  ids: int
  steps: int
  queries: int
  groups: int
  heads: int
  lanes: int
  width: int
  slots: int
  num_slots: int
  memory_bytes: int
  interpret: bool | pltpu.InterpretParams


def make_tiling(
  sizes: tuple[int, int, int, int, int],
  itemsize: int,
  *,
  step_blocks: int,
  max_bytes: int,
  interpret: bool | pltpu.InterpretParams,
) -> PoolTiling:
  """Puts as many heads into a group as fit.

  Args:
    sizes: Ids of a row, queries, heads, width of a head, and slots.
    itemsize: Bytes of a value.
    step_blocks: Most blocks of ids of a step.
    max_bytes: Bytes that a kernel may hold.
    interpret: Mode of interpretation, see `pl.pallas_call`.

  Raises:
    ValueError: If no group fits.
  """
  size, queries, heads, width, num_slots = sizes
  block, alignment = kernels.BLOCK, kernels.ALIGNMENT
  ids = min(step_blocks, -(-size // block)) * block
  slots = -(-num_slots // alignment) * alignment
  for groups in (n for n in range(1, heads + 1) if heads % n == 0):
    lanes = -(-heads // groups * width // _LANES) * _LANES
    if groups > 1 and heads // groups * width % _LANES:
      continue
    # Blocks are held twice: one is copied while the kernel works on the other.
    tokens = 2 * ids * lanes * itemsize + 16 * block * lanes * 4
    forward = slots * lanes * (4 + 2 * itemsize) + tokens
    backward = (
      2 * queries * slots * (lanes * itemsize + _LANES * 4) + 2 * tokens
    )
    memory_bytes = max(forward, backward)
    if memory_bytes <= max_bytes:
      break
  else:
    raise ValueError(
      f"segment_pool by 'pallas': got {num_slots} slots and {queries} queries"
      f' of {heads} heads of {width}, which take {memory_bytes} bytes a group'
      f' of heads, allowed: at most {max_bytes}; a group is a multiple of'
      f' {_LANES} wide'
    )
  return PoolTiling(
    ids=ids,
    steps=-(-size // ids),
    queries=queries,
    groups=groups,
    heads=heads // groups,
    lanes=lanes,
    width=width,
    slots=slots,
    num_slots=num_slots,
    memory_bytes=memory_bytes,
    interpret=interpret,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pool(tiling, score, value_BSD, slot_BS):
  return _forward(tiling, score, value_BSD, slot_BS)[0]


def _forward(tiling, score, value_BSD, slot_BS):
  p, dtype = tiling, value_BSD.dtype
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
    compiler_params=_compiler_params(p),
    cost_estimate=_cost(p, batch, size, dtype, products=2, passes=1),
    interpret=p.interpret,
    name='segment_pool',
  )(*_ends(slot_BS), slot_BS[:, None], score, value_BSD, _expansion(p, dtype))
  return out, (score, value_BSD, slot_BS, out, norm)


def _backward(tiling, saved, grad):
  score, value_BSD, slot_BS, out, norm = saved
  p, dtype = tiling, value_BSD.dtype
  batch, size = slot_BS.shape
  split = (batch, p.num_slots, p.queries, p.groups, p.lanes)
  delta = (out.astype(jnp.float32) * grad.astype(jnp.float32)).reshape(split)
  delta = delta[..., : p.heads * p.width].reshape(*split[:4], p.heads, p.width)
  delta = jnp.sum(delta, -1).transpose(0, 3, 2, 1, 4)
  missing = p.slots - p.num_slots
  delta = jnp.pad(delta, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0)))
  grad = jnp.pad(grad.astype(dtype), ((0, 0), (0, missing), (0, 0)))
  in_specs, out_specs = _backward_specs(p)
  grad_score, grad_value = pl.pallas_call(
    kernels.backward,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(batch, p.groups, p.steps),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM((p.queries, 2, p.heads, 1), jnp.float32)],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(score.shape, jnp.float32),
      jax.ShapeDtypeStruct(value_BSD.shape, dtype),
    ],
    compiler_params=_compiler_params(p),
    cost_estimate=_cost(p, batch, size, dtype, products=4, passes=2),
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


def _backward_specs(
  p: PoolTiling,
) -> tuple[list[pl.BlockSpec], list[pl.BlockSpec]]:
  """Returns the blocks that a backward step reads, and those it writes."""

  def step(c: int) -> int:
    return p.steps - 1 - c

  of_ids = pl.BlockSpec(
    (None, None, p.queries, p.heads, p.ids),
    lambda b, g, c, *_: (b, g, 0, 0, step(c)),
  )
  of_values = pl.BlockSpec(
    (None, p.ids, p.lanes), lambda b, g, c, *_: (b, step(c), g)
  )
  in_specs = [
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
  ]
  return in_specs, [of_ids, of_values]


def _compiler_params(p: PoolTiling) -> pltpu.CompilerParams:
  """Returns the parameters of the compiler; the steps of a row go in order."""
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'parallel', 'arbitrary'),
    vmem_limit_bytes=p.memory_bytes + _ROOM_BYTES,
  )


def _cost(
  p: PoolTiling,
  batch: int,
  size: int,
  dtype: jnp.dtype,
  *,
  products: int,
  passes: int,
) -> pl.CostEstimate:
  """Counts products with a window of slots, and values read and written."""
  lanes = p.groups * p.lanes
  ids, slots = batch * size, batch * p.num_slots * p.queries
  heads = p.queries * p.groups * p.heads
  return pl.CostEstimate(
    flops=products * 2 * ids * p.queries * lanes * kernels.BLOCK,
    transcendentals=ids * heads,
    bytes_accessed=(passes * ids + slots) * lanes * dtype.itemsize
    + 4 * ids * heads * (passes + 1),
  )


def _ends(slot_BS: Array) -> tuple[Array, Array]:
  """Returns the slots of the first and of the last id of each block."""
  block = kernels.BLOCK
  return slot_BS[:, ::block], slot_BS[:, block - 1 :: block]


def _expansion(p: PoolTiling, dtype: jnp.dtype) -> Array:
  """Returns [heads, lanes], 1 in the lanes of a head, else 0."""
  lane, head = jnp.arange(p.lanes), jnp.arange(p.heads)
  return (lane // p.width == head[:, None]).astype(dtype)
