"""Ids from codes alone, many segments side by side."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops.cache import Cache
from abstractinator.ops.shards import num_row_shards
from abstractinator.types import Array, Special

# Lanes of a device at first. More gain nothing: on CPU products of so many rows
# run at its full speed, on an accelerator of many times as many.
_MOST_LANES = {'cpu': 256}
_MOST_LANES_ELSEWHERE = 16384
# Parts of the lanes that are enough in the end, one after the other. Each is
# one more program to compile, and less than so many lanes are as few as one.
_PARTS = (1, 2, 8)
_FEW_LANES = 32


@flax.struct.dataclass
class Lanes:
  """Segments that are decoded side by side.

  Attributes:
    next_B: [B] int32, segments of each row that have begun.
    place_BQ: [B, Q] int32, which segment of its row each lane has.
    is_active_BQ: [B, Q] bool, lanes that have one.
    offset_BQ: [B, Q] int32, position of the next id in its segment.
    fed_BQ: [B, Q] int32, the id before, or BOS.
    cache: Of the expander, of B x Q rows.
    ids_BPL: [B, P, L] int32, ids of each segment so far.
    length_BP: [B, P] int32, how many.
  """

  next_B: Array
  place_BQ: Array
  is_active_BQ: Array
  offset_BQ: Array
  fed_BQ: Array
  cache: Cache
  ids_BPL: Array
  length_BP: Array


def decode_segments(
  expander: nn.Module,
  memory_BUD: Array,
  is_valid_BP: Array,
  lowest_BP: Array,
  codebooks: Codebooks | None = None,
) -> tuple[Array, Array]:
  """Greedy ids of every segment, many at once.

  Each row has lanes, and each lane a segment; when that is done the next one
  that none has. With a lane for each, no more steps are taken than the longest
  segment has ids, at most `max_length`. When no segment waits, and a part of
  the lanes of each row holds all that are left, the steps to come are of those
  lanes only.

  Args:
    expander: With `context='segment'` and `ends='head'`.
    memory_BUD: [B, U, D], vectors of the codes.
    is_valid_BP: [B, P] bool, slots with a segment; nothing waits for others.
    lowest_BP: [B, P] int32, first slot that each segment may see.
    codebooks: See `Vocabulary`.

  Returns:
    [B, P, L] int32 ids and [B, P] int32 lengths, 1..L, 0 in empty slots; ids
    past a segment's length are 0.
  """
  batch, slots = lowest_BP.shape
  max_length = expander.config.segmentation.max_length
  bos = expander.num_ids + Special.BOS
  row_B1 = jnp.arange(batch)[:, None]
  remembered = expander.remember(memory_BUD)
  count_B = jnp.sum(is_valid_BP, axis=1)
  # The slots with a segment, the order in which they begin.
  slot_BP = jnp.argsort(~is_valid_BP, axis=1, stable=True)

  def goes_on(state, fewest):
    left_B = jnp.sum(state.is_active_BQ, axis=1) + count_B - state.next_B
    return jnp.max(left_B) > fewest

  def one_step(module, state):
    shape = state.fed_BQ.shape
    slot_BQ = slot_BP[row_B1, state.place_BQ]
    offset_N = state.offset_BQ.reshape(-1)
    x_ND, cache = module.step(
      state.fed_BQ.reshape(-1),
      offset_N,
      state.place_BQ.reshape(-1),
      state.cache,
      state.is_active_BQ.reshape(-1),
      (remembered, slot_BQ, lowest_BP[row_B1, slot_BQ]),
      codebooks,
    )
    ids_N = module.greedy(x_ND, codebooks)
    is_end_N = module.is_end(x_ND, ids_N, offset_N, codebooks)
    ids_BQ, is_end_BQ = ids_N.reshape(shape), is_end_N.reshape(shape)
    at_BQ = jnp.where(state.is_active_BQ, slot_BQ, slots)
    is_done_BQ = state.is_active_BQ & is_end_BQ
    place_BQ = state.next_B[:, None] + jnp.cumsum(is_done_BQ, axis=1) - 1
    has_next_BQ = is_done_BQ & (place_BQ < count_B[:, None])
    return Lanes(
      next_B=state.next_B + jnp.sum(has_next_BQ, axis=1),
      place_BQ=jnp.where(has_next_BQ, place_BQ, state.place_BQ),
      is_active_BQ=jnp.where(is_done_BQ, has_next_BQ, state.is_active_BQ),
      offset_BQ=jnp.where(is_end_BQ, 0, state.offset_BQ + 1),
      fed_BQ=jnp.where(is_done_BQ, bos, ids_BQ),
      cache=cache,
      ids_BPL=state.ids_BPL.at[row_B1, at_BQ, state.offset_BQ].set(
        ids_BQ, mode='drop'
      ),
      length_BP=state.length_BP.at[row_B1, at_BQ].add(1, mode='drop'),
    )

  widths = _widths(batch, slots)
  place_BQ = jnp.broadcast_to(jnp.arange(widths[0]), (batch, widths[0]))
  state = Lanes(
    next_B=jnp.minimum(count_B, widths[0]),
    place_BQ=place_BQ,
    is_active_BQ=place_BQ < count_B[:, None],
    offset_BQ=jnp.zeros_like(place_BQ),
    fed_BQ=jnp.full_like(place_BQ, bos),
    cache=expander.init_cache(place_BQ.size, max_length),
    ids_BPL=jnp.zeros((batch, slots, max_length), jnp.int32),
    length_BP=jnp.zeros((batch, slots), jnp.int32),
  )
  for width, fewest in zip(widths, [*widths[1:], 0], strict=True):
    state = nn.while_loop(
      lambda _, state, fewest=fewest: goes_on(state, fewest),
      one_step,
      expander,
      state if width == widths[0] else _narrow(state, width),
    )
  return state.ids_BPL, state.length_BP


def _widths(batch: int, slots: int) -> list[int]:
  """How many lanes a row has, at first and when few segments are left."""
  most = _MOST_LANES.get(jax.default_backend(), _MOST_LANES_ELSEWHERE)
  rows = batch // num_row_shards(batch)
  width = min(slots, max(most // rows, 1))
  widths = {-(-width // part) for part in _PARTS}
  is_enough = [w for w in widths if rows * w >= _FEW_LANES or w == width]
  return sorted(is_enough, reverse=True)


def _narrow(state: Lanes, width: int) -> Lanes:
  """Takes away lanes that have no segment."""
  batch, lanes = state.place_BQ.shape
  order_BQ = jnp.argsort(~state.is_active_BQ, axis=1, stable=True)[:, :width]

  def of_rows(x_BQ):
    return jnp.take_along_axis(x_BQ, order_BQ, axis=1)

  def kept(x_NX):
    # Row by row, so that rows may lie on different devices.
    x_BQX = x_NX.reshape(batch, lanes, *x_NX.shape[1:])
    taken = jax.vmap(lambda x_QX, order_Q: x_QX[order_Q])(x_BQX, order_BQ)
    return taken.reshape(batch * width, *x_NX.shape[1:])

  return state.replace(
    place_BQ=of_rows(state.place_BQ),
    is_active_BQ=of_rows(state.is_active_BQ),
    offset_BQ=of_rows(state.offset_BQ),
    fed_BQ=of_rows(state.fed_BQ),
    cache=jax.tree.map(kept, state.cache),
  )
