"""Pooling by a kernel for GPU: sums without atomics, in one pass over the ids.

A program has one query and head, and a block of slots. The ids of a segment lie
side by side, and so do those of a block of slots: the program reads them tile
by tile, with a running softmax, and sums by a product with the matrix that says
which id is in which slot. The backward pass only gathers; XLA does it.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax,
arXiv:1805.02867, for the softmax.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from abstractinator.ops.attention.pallas_common import (
  COLUMNS,
  FLOOR,
  MASK,
  dot,
  require_width,
)
from abstractinator.ops.segment_pool.xla import buckets, gradients
from abstractinator.types import Array

# Slots of a program, ids of a tile, and groups of 32 threads of a program.
# Matrix units multiply at least 16 by 16.
_SLOTS, _IDS, _NUM_WARPS = 32, 64, 4
_MIN_WIDTH = 16


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def segment_pool(
  score_BSQH: Array,
  value_BSHE: Array,
  slot_BS: Array,
  has_slot_BS: Array,
  num_slots: int,
  interpret: bool = False,
) -> Array:
  """Pools like `reference.segment_pool`.

  `interpret` is the mode of interpretation of `pl.pallas_call`.

  Raises:
    NotImplementedError: If a head is wider than 256.
  """
  args = score_BSQH, value_BSHE, slot_BS, has_slot_BS
  return _forward(*args, num_slots, interpret)[0]


def _forward(
  score_BSQH, value_BSHE, slot_BS, has_slot_BS, num_slots, interpret
):
  batch, size, queries, heads = score_BSQH.shape
  require_width('segment_pool', value_BSHE)
  width = value_BSHE.shape[3]
  num_blocks = pl.cdiv(num_slots, _SLOTS)
  # First id of each block of slots; the ids of the last block end the row.
  edge = jnp.arange(num_blocks + 1) * _SLOTS
  begin = jnp.sum(slot_BS[:, :, None] < edge, axis=1, dtype=jnp.int32)
  row = pl.BlockSpec((None, size), lambda x, i, b: (b, 0))
  tile_width = max(_MIN_WIDTH, pl.next_power_of_2(width))
  scores = score_BSQH.reshape(batch, size, queries * heads)
  per_slot = pl.BlockSpec((None, None, _SLOTS), lambda x, i, b: (b, x, i))
  number = jax.ShapeDtypeStruct(
    (batch, queries * heads, num_slots), jnp.float32
  )
  out, *norm = pl.pallas_call(
    functools.partial(_kernel, num_slots=num_slots, width=width),
    out_shape=[
      jax.ShapeDtypeStruct(
        (batch, num_slots, queries * heads, width), value_BSHE.dtype
      ),
      number,
      number,
    ],
    grid=(queries * heads, num_blocks, batch),
    in_specs=[
      pl.BlockSpec((None, num_blocks + 1), lambda x, i, b: (b, 0)),
      row,
      pl.BlockSpec((None, size, None), lambda x, i, b: (b, 0, x)),
      pl.BlockSpec(
        (None, size, None, tile_width), lambda x, i, b: (b, 0, x % heads, 0)
      ),
    ],
    out_specs=[
      pl.BlockSpec(
        (None, _SLOTS, None, tile_width), lambda x, i, b: (b, i, x, 0)
      ),
      per_slot,
      per_slot,
    ],
    compiler_params=plt.CompilerParams(num_warps=_NUM_WARPS, num_stages=2),
    cost_estimate=pl.CostEstimate(
      flops=2 * _SLOTS * scores.size * width,
      transcendentals=_SLOTS * scores.size,
      bytes_accessed=scores.size * scores.dtype.itemsize
      + (value_BSHE.size + batch * num_slots * queries * heads * width)
      * value_BSHE.dtype.itemsize,
    ),
    interpret=interpret,
    name='segment_pool',
  )(begin, jnp.where(has_slot_BS, slot_BS, -1), scores, value_BSHE)
  out_BPQHE = out.reshape(batch, num_slots, queries, heads, width)
  saved = score_BSQH, value_BSHE, slot_BS, has_slot_BS, out_BPQHE, norm
  return out_BPQHE, saved


def _backward(num_slots, interpret, saved, grad_BPQHE):
  del interpret
  score_BSQH, value_BSHE, slot_BS, has_slot_BS, out_BPQHE, norm = saved
  _, _, queries, heads = score_BSQH.shape
  bucket_N = buckets(slot_BS, num_slots)
  # One number for both would round the total if the score is large.
  largest_NX, total_NX = (
    x.swapaxes(1, 2).reshape(-1, queries * heads)[bucket_N] for x in norm
  )
  score_NX = score_BSQH.astype(jnp.float32).reshape(total_NX.shape)
  weight_NX = jnp.exp(score_NX - largest_NX) / total_NX
  weight_NX = jnp.where(has_slot_BS.reshape(-1, 1), weight_NX, 0.0)
  weight_NQH = weight_NX.reshape(-1, queries, heads)
  grads = gradients(
    weight_NQH, score_BSQH, value_BSHE, slot_BS, out_BPQHE, grad_BPQHE
  )
  return *grads, None, None


segment_pool.defvjp(_forward, _backward)


def _kernel(
  begin_ref,
  slot_ref,
  score_ref,
  value_ref,
  out_ref,
  largest_ref,
  total_ref,
  *,
  num_slots,
  width,
):
  """Computes the means of a block of slots, its largest scores and totals."""
  index = pl.program_id(1)
  own = index * _SLOTS + jnp.arange(_SLOTS)
  begin, end = begin_ref[index], begin_ref[index + 1]
  inside = jnp.arange(value_ref.shape[1]) < width

  def meet(tile, state):
    largest, total, out = state
    start = begin + tile * _IDS
    at, is_there = pl.ds(start, _IDS), start + jnp.arange(_IDS) < end
    slot = plt.load(slot_ref.at[at], mask=is_there, other=-1)
    score = plt.load(score_ref.at[at], mask=is_there, other=0)
    # A value without a slot may be NaN.
    value = plt.load(
      value_ref.at[at], mask=(slot >= 0)[:, None] & inside[None], other=0
    )
    is_in = own[:, None] == slot[None, :]
    score = jnp.where(is_in, score.astype(jnp.float32)[None], MASK)
    new = jnp.maximum(largest, jnp.max(score, axis=1))
    weight = jnp.exp(score - new[:, None])
    decay = jnp.exp(largest - new)
    total = total * decay + jnp.sum(weight, axis=1)
    added = dot(weight.astype(value.dtype), value, COLUMNS)
    return new, total, out * decay[:, None] + added

  start = (
    jnp.full((_SLOTS,), FLOOR, jnp.float32),
    jnp.zeros((_SLOTS,), jnp.float32),
    jnp.zeros((_SLOTS, value_ref.shape[1]), jnp.float32),
  )
  tiles = pl.cdiv(end - begin, _IDS)
  largest, total, out = lax.fori_loop(0, tiles, meet, start)
  total = jnp.where(total > 0, total, 1.0)
  out = (out / total[:, None]).astype(out_ref.dtype)
  is_slot = own < num_slots
  plt.store(out_ref, out, mask=is_slot[:, None] & inside[None])
  plt.store(largest_ref, largest, mask=is_slot)
  plt.store(total_ref, total, mask=is_slot)
