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
    step_blocks: See `segment_pool`, as the arguments after it.
    max_bytes: See `segment_pool`.
    interpret: See `segment_pool`.

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
  specs = _specs(
    p,
    queries=None,
    query=lambda g: g // p.groups,
    group=lambda g: g % p.groups,
    step=lambda c: c,
  )
  width = p.queries * p.groups * p.lanes
  out, norm = _call(
    kernels.forward,
    p,
    (score, value_BSD, slot_BS),
    inputs=(),
    in_specs=specs[:4],
    out_specs=[
      pl.BlockSpec((None, p.num_slots, p.lanes), lambda b, g, c, *_: (b, 0, g)),
      specs[4],
    ],
    out_shape=[
      jax.ShapeDtypeStruct((len(slot_BS), p.num_slots, width), dtype),
      jax.ShapeDtypeStruct(
        (*score.shape[:3], 2, *score.shape[3:]), jnp.float32
      ),
    ],
    scratch=[(p.slots, p.lanes), (p.heads, 1), (p.heads, 1)],
    name='segment_pool',
  )
  return out, (score, value_BSD, slot_BS, out, norm)


def _backward(tiling, saved, grad):
  score, value_BSD, slot_BS, out, norm = saved
  p, dtype = tiling, value_BSD.dtype
  split = (len(slot_BS), p.num_slots, p.queries, p.groups, p.lanes)
  delta = (out.astype(jnp.float32) * grad.astype(jnp.float32)).reshape(split)
  delta = delta[..., : p.heads * p.width].reshape(*split[:4], p.heads, p.width)
  # Inner products of the outputs and their gradients.
  delta = jnp.sum(delta, -1).transpose(0, 3, 2, 1, 4)
  missing = p.slots - p.num_slots
  delta = jnp.pad(delta, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0)))
  grad = jnp.pad(grad.astype(dtype), ((0, 0), (0, missing), (0, 0)))
  specs = _specs(
    p,
    queries=p.queries,
    query=lambda g: 0,
    group=lambda g: g,
    step=lambda c: p.steps - 1 - c,
  )
  grads = _call(
    kernels.backward,
    p,
    (score, value_BSD, slot_BS),
    inputs=(norm, delta, *[grad] * p.queries),
    in_specs=[
      *specs,
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
    out_specs=specs[1:3],
    out_shape=[
      jax.ShapeDtypeStruct(score.shape, jnp.float32),
      jax.ShapeDtypeStruct(value_BSD.shape, dtype),
    ],
    scratch=[(p.queries, 2, p.heads, 1)],
    name='segment_pool_backward',
  )
  return *grads, None


_pool.defvjp(_forward, _backward)


def _specs(p, *, queries, query, group, step):
  """Returns the blocks of slots, scores, values, expansion and divisors.

  Args:
    p: Tiling.
    queries: Number of queries of a step, None for one.
    query: Function from the second index of the grid to the query.
    group: Function from the second index of the grid to the group of heads.
    step: Function from the third index of the grid to the step of the row.
  """
  return [
    pl.BlockSpec((None, 1, p.ids), lambda b, g, c, *_: (b, 0, step(c))),
    pl.BlockSpec(
      (None, None, queries, p.heads, p.ids),
      lambda b, g, c, *_: (b, group(g), query(g), 0, step(c)),
    ),
    pl.BlockSpec(
      (None, p.ids, p.lanes), lambda b, g, c, *_: (b, step(c), group(g))
    ),
    pl.BlockSpec((p.heads, p.lanes), lambda *_: (0, 0)),
    pl.BlockSpec(
      (None, None, queries, 2, p.heads, p.ids),
      lambda b, g, c, *_: (b, group(g), query(g), 0, 0, step(c)),
    ),
  ]


def _call(
  kernel, p, args, *, inputs, in_specs, out_specs, out_shape, scratch, name
):
  """Runs a kernel over rows, queries and groups of heads, and steps.

  Its references are, in this order:

    The slots of the first and of the last id of each block, [B, blocks] int32.
    The slots of the ids, [1, ids] int32; their scores, [heads, ids] float32;
    their values, [ids, lanes]; and 1 in the lanes of each head, else 0, [heads,
    lanes].
    `inputs`: for the backward pass divisors, [Q, 2, heads, ids]; inner products
    of the outputs and their gradients, [Q, slots, heads] float32; and the
    gradients of the outputs, Q times [slots, lanes].
    Outputs: means, [P, lanes], and divisors, [2, heads, ids] float32; or
    gradients of scores and of values.
    Scratch memory in float32.
  """
  score, value_BSD, slot_BS = args
  dtype, (batch, size) = value_BSD.dtype, slot_BS.shape
  is_forward = kernel is kernels.forward
  # Products with a window of slots, and values read and written.
  passes, heads = 1 if is_forward else 2, p.queries * p.groups * p.heads
  lanes, slots = p.groups * p.lanes, batch * p.num_slots * p.queries
  lane, head = jnp.arange(p.lanes), jnp.arange(p.heads)
  expansion = (lane // p.width == head[:, None]).astype(dtype)
  block = kernels.BLOCK
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(batch, p.groups * (p.queries if is_forward else 1), p.steps),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    ),
    out_shape=out_shape,
    # The steps of a row go in order.
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'parallel', 'arbitrary'),
      vmem_limit_bytes=p.memory_bytes + _ROOM_BYTES,
    ),
    cost_estimate=pl.CostEstimate(
      flops=4 * passes * batch * size * p.queries * lanes * block,
      transcendentals=batch * size * heads,
      bytes_accessed=(passes * batch * size + slots) * lanes * dtype.itemsize
      + 4 * batch * size * heads * (passes + 1),
    ),
    interpret=p.interpret,
    name=name,
  )(
    slot_BS[:, ::block],
    slot_BS[:, block - 1 :: block],
    slot_BS[:, None],
    score,
    value_BSD,
    expansion,
    *inputs,
  )
