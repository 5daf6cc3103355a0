"""Sizes of the kernels that pool segments on TPU, and what they cost."""

import dataclasses
from typing import Any

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from abstractinator.ops.segment_pool import slot_windows

_LANES = 128
# Blocks of ids of a step: enough to hide what a step costs.
_BLOCKS = 4
# What a kernel may hold. The smallest memory of a core that it is meant for,
# 64 MiB (v5p, 7x), less room for what the compiler needs.
_MAX_BYTES = 40 << 20
_ROOM_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Plan:
  """Sizes of the kernels.

  Attributes:
    ids: Of a step.
    steps: Of a row.
    queries: Q.
    groups: Of heads.
    heads: Of a group.
    lanes: Of a group, a multiple of 128.
    width: Lanes of a head.
    slots: P, rounded up.
    num_slots: P.
    memory_bytes: What the larger kernel holds.
    interpret: See `segment_pool`.
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
  interpret: Any


def make_plan(size, queries, heads, width, num_slots, itemsize, interpret):
  """As many heads at a time as fit."""
  ids = min(_BLOCKS, -(-size // slot_windows.BLOCK)) * slot_windows.BLOCK
  slots = -(-num_slots // slot_windows.ALIGNMENT) * slot_windows.ALIGNMENT
  for groups in (n for n in range(1, heads + 1) if heads % n == 0):
    lanes = -(-heads // groups * width // _LANES) * _LANES
    if groups > 1 and heads // groups * width % _LANES:
      continue
    # Blocks are held twice, while one is copied the other is worked on.
    tokens = 2 * ids * lanes * itemsize + 16 * slot_windows.BLOCK * lanes * 4
    forward = slots * lanes * (4 + 2 * itemsize) + tokens
    backward = (
      2 * queries * slots * (lanes * itemsize + _LANES * 4) + 2 * tokens
    )
    memory_bytes = max(forward, backward)
    if memory_bytes <= _MAX_BYTES:
      break
  else:
    raise ValueError(
      f"segment_pool by 'pallas': got {num_slots} slots and {queries} queries"
      f' of {heads} heads of {width}, which take {memory_bytes} bytes a group'
      f' of heads, allowed: at most {_MAX_BYTES}; a group is a multiple of'
      f' {_LANES} wide'
    )
  return Plan(
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


def parameters(plan):
  """Of the compiler: queries and heads are free, steps go in order."""
  return pltpu.CompilerParams(
    dimension_semantics=('parallel', 'parallel', 'arbitrary'),
    vmem_limit_bytes=plan.memory_bytes + _ROOM_BYTES,
  )


def cost(plan, batch, size, dtype, *, products, passes):
  """Of products with a window of slots, and of values read and written."""
  lanes = plan.groups * plan.lanes
  ids, slots = batch * size, batch * plan.num_slots * plan.queries
  return pl.CostEstimate(
    flops=products * 2 * ids * plan.queries * lanes * slot_windows.BLOCK,
    transcendentals=ids * plan.queries * plan.groups * plan.heads,
    bytes_accessed=(passes * ids + slots) * lanes * dtype.itemsize
    + 4 * ids * plan.queries * plan.groups * plan.heads * (passes + 1),
  )
