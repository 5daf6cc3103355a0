"""Segment cross-attention that fetches the rows which queries see."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.attention.shapes import in_blocks
from abstractinator.types import Array

# Queries of a block: a tile of a matrix unit.
_BLOCK = 128


def lookup(v_BPGE: Array, index_BT: Array) -> Array:
  """Fetches the value of each query's own slot, whose weight is always 1.

  Args:
    v_BPGE: Values, one per slot, [B, P, G, E].
    index_BT: Slot of each query, [B, T] int32; outside 0..P-1 for none.

  Returns:
    [B, T, G, E]; zeros for a query without slot.
  """
  has_slot_BT = (index_BT >= 0) & (index_BT < v_BPGE.shape[1])
  slot_BT = jnp.clip(index_BT, 0, v_BPGE.shape[1] - 1)
  out = _fetch_rows(v_BPGE, slot_BT)
  return jnp.where(has_slot_BT[..., None, None], out, 0)


def gather(
  q_BTHA: Array,
  k_BUGA: Array,
  v_BUGE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
  rows_per_slot: int,
) -> Array:
  """Implements `api.segment_cross_attention` by fetching rows one by one.

  It fetches the rows of `lookback` + 1 slots per query. Rows of the batch are
  one row here: XLA on CPU would give all of a row to one thread.

  `jax.nn.softmax` would divide every weight; here the weighted sum of the
  values is divided once.
  """
  batch, rows = v_BUGE.shape[:2]
  has_slot_BT = (index_BT >= 0) & (index_BT < rows // rows_per_slot)
  first_B = rows * jnp.arange(batch, dtype=jnp.int32)
  q_NHA = q_BTHA.reshape(-1, *q_BTHA.shape[2:])

  def gathered(x_BUHX: Array, row_BT: Array) -> Array:
    row_BT = jnp.clip(row_BT, 0, rows - 1) + first_B[:, None]
    x_UHX = x_BUHX.reshape(-1, *x_BUHX.shape[2:])
    return _fetch_rows(x_UHX[None], row_BT.reshape(1, -1))[0]

  scores, values = [], []
  for back in range(lookback + 1):
    slot_BT = index_BT - back
    sees_N = (has_slot_BT & (slot_BT >= lowest_BT)).reshape(-1)
    for number in range(rows_per_slot):
      row_BT = slot_BT * rows_per_slot + number
      key = jnp.broadcast_to(gathered(k_BUGA, row_BT), q_NHA.shape)
      score_NH = scale * jnp.einsum(
        'nhd,nhd->nh', q_NHA, key, preferred_element_type=jnp.float32
      )
      scores.append(jnp.where(sees_N[:, None], score_NH, -jnp.inf))
      values.append(gathered(v_BUGE, row_BT))
  score = jnp.stack(scores)
  largest = lax.stop_gradient(jnp.max(score, axis=0))
  weight = jnp.exp(score - jnp.where(jnp.isfinite(largest), largest, 0.0))
  total = jnp.sum(weight, axis=0)
  weighted = [w[..., None] * v for w, v in zip(weight, values, strict=True)]
  out = sum(weighted[1:], start=weighted[0])
  out /= jnp.where(total > 0, total, 1.0)[..., None]
  return out.astype(v_BUGE.dtype).reshape(*index_BT.shape, *out.shape[1:])


def halo(
  q_BTHA: Array,
  k_BUGA: Array,
  v_BUGE: Array,
  *,
  index_BT: Array,
  lowest_BT: Array,
  lookback: int,
  scale: float,
  rows_per_slot: int,
) -> Array:
  """Implements `api.segment_cross_attention` by blocks of queries.

  If the slot rises by at most one from a query to the next, the 128 queries of
  a block see at most 128 + `lookback` consecutive slots: one slice of keys and
  one of values. A query gets zeros if its slot is before the first slot of its
  block, or 128 slots or more after it. That does not happen to ids in order,
  whose segments are numbered one by one; ids without a slot may be anywhere.
  """
  batch, queries, heads, _ = q_BTHA.shape
  slots = v_BUGE.shape[1] // rows_per_slot
  block = min(_BLOCK, queries)
  window = min(block + lookback, slots)
  index, lowest = in_blocks(index_BT, block, -1), in_blocks(lowest_BT, block)
  has_slot = (index >= 0) & (index < slots)
  first = jnp.take_along_axis(
    index, jnp.argmax(has_slot, axis=2)[..., None], axis=2
  )
  start = jnp.clip(first - lookback, 0, slots - window)  # [B, blocks, 1]

  def sliced(x_BU: Array) -> Array:
    starts = start[..., 0] * rows_per_slot
    x = _fetch(x_BU, starts, window * rows_per_slot)
    # A head that all heads share has no dimension of heads.
    return x[:, :, :, 0] if x.shape[3] < heads else x

  slot = start + jnp.arange(window * rows_per_slot) // rows_per_slot
  slot = slot[:, :, None]  # [B, blocks, 1, rows of the window]
  index, lowest = index[..., None], lowest[..., None]
  is_near = (index >= first[..., None]) & (index < first[..., None] + block)
  sees = (slot <= index) & (slot >= index - lookback) & (slot >= lowest)
  sees = (sees & is_near & has_slot[..., None])[:, :, None]
  key, value = sliced(k_BUGA), sliced(v_BUGE)
  score = scale * jnp.einsum(
    f'bnthd,{"bnuhd" if key.ndim == 5 else "bnud"}->bnhtu',
    in_blocks(q_BTHA, block),
    key,
    preferred_element_type=jnp.float32,
  )
  weight = jax.nn.softmax(score, where=sees)
  out = jnp.einsum(
    f'bnhtu,{"bnuhe" if value.ndim == 5 else "bnue"}->bnthe',
    weight.astype(v_BUGE.dtype),
    value,
    preferred_element_type=jnp.float32,
  )
  out = out.reshape(batch, -1, heads, out.shape[-1])[:, :queries]
  return out.astype(v_BUGE.dtype)


def _fetch_rows(x_BUX: Array, row_BT: Array) -> Array:
  """Fetches the rows `row_BT`, which are in 0..U-1: [B, T, ...]."""
  return _fetch(x_BUX, row_BT, 1)[:, :, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fetch(x_BUX: Array, start_BN: Array, size: int) -> Array:
  """Fetches N runs of rows of each batch row, that begin at 0..U-size.

  A row that many queries fetch gets many gradients: too many to be added up in
  bfloat16. Their sum is float32. The result is [B, N, size, ...].
  """
  return _slices(x_BUX, start_BN, size)


def _slices(x_BUX, start_BN, size):
  def of_row(x, starts):
    return jax.vmap(lambda i: lax.dynamic_slice_in_dim(x, i, size))(starts)

  return jax.vmap(of_row)(x_BUX, start_BN)


def _forward(x_BUX, start_BN, size):
  return _slices(x_BUX, start_BN, size), (x_BUX, start_BN)


def _backward(size, saved, grad):
  x_BUX, start_BN = saved
  _, pullback = jax.vjp(
    lambda x: _slices(x, start_BN, size), x_BUX.astype(jnp.float32)
  )
  return pullback(grad.astype(jnp.float32))[0].astype(x_BUX.dtype), None


_fetch.defvjp(_forward, _backward)
