"""Ids from codes alone, all segments side by side."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from abstractinator.modules.vocabulary import Codebooks
from abstractinator.ops.cache import Cache
from abstractinator.types import Array, Special

# Lanes of segments that are decoded side by side: fewer are left as they are.
_FEW_LANES = 128
_MOST_WIDTHS = 3


@flax.struct.dataclass
class Lanes:
  """Segments that are decoded side by side.

  Attributes:
    number: [] int32, ids of each so far.
    slot_BQ: [B, Q] int32, the segment of each lane.
    is_active_BQ: [B, Q] bool, lanes whose segment is not done.
    fed_BQ: [B, Q] int32, the id before, or BOS.
    cache: Of the expander, of B x Q rows.
    ids_BPL: [B, P, L] int32, ids of each segment so far.
    length_BP: [B, P] int32, how many.
  """

  number: Array
  slot_BQ: Array
  is_active_BQ: Array
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
  """Greedy ids of every segment, all at once.

  Takes as many steps as the longest segment has ids, at most `max_length`,
  whatever the number of segments. When a quarter of the lanes of each row has
  the segments that are not done, the steps to come are of those lanes only.

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
  row_B1 = jnp.arange(batch)[:, None]
  remembered = expander.remember(memory_BUD)

  def goes_on(state, fewest):
    count_B = jnp.sum(state.is_active_BQ, axis=1)
    return (state.number < max_length) & (jnp.max(count_B) > fewest)

  def one_step(module, state):
    lanes = state.fed_BQ.size
    offset_N = jnp.full((lanes,), state.number)
    x_ND, cache = module.step(
      state.fed_BQ.reshape(lanes),
      offset_N,
      jnp.zeros(lanes, jnp.int32),
      state.cache,
      state.is_active_BQ.reshape(lanes),
      (remembered, state.slot_BQ, lowest_BP[row_B1, state.slot_BQ]),
      codebooks,
    )
    ids_N = module.greedy(x_ND, codebooks)
    is_end_N = module.is_end(x_ND, ids_N, offset_N, codebooks)
    ids_BQ = ids_N.reshape(state.fed_BQ.shape)
    at_BQ = jnp.where(state.is_active_BQ, state.slot_BQ, slots)
    return Lanes(
      number=state.number + 1,
      slot_BQ=state.slot_BQ,
      is_active_BQ=state.is_active_BQ & ~is_end_N.reshape(ids_BQ.shape),
      fed_BQ=ids_BQ,
      cache=cache,
      ids_BPL=state.ids_BPL.at[row_B1, at_BQ, state.number].set(
        ids_BQ, mode='drop'
      ),
      length_BP=state.length_BP.at[row_B1, at_BQ].add(1, mode='drop'),
    )

  state = Lanes(
    number=jnp.zeros((), jnp.int32),
    slot_BQ=jnp.broadcast_to(jnp.arange(slots), (batch, slots)),
    is_active_BQ=is_valid_BP,
    fed_BQ=jnp.full((batch, slots), expander.num_ids + Special.BOS, jnp.int32),
    cache=expander.init_cache(batch * slots, max_length),
    ids_BPL=jnp.zeros((batch, slots, max_length), jnp.int32),
    length_BP=jnp.zeros((batch, slots), jnp.int32),
  )
  widths = _widths(batch, slots)
  for width, fewest in zip(widths, [*widths[1:], 0], strict=True):
    state = nn.while_loop(
      lambda _, state, fewest=fewest: goes_on(state, fewest),
      one_step,
      expander,
      state if width == slots else _narrow(state, width),
    )
  return state.ids_BPL, state.length_BP


def _widths(batch: int, slots: int) -> list[int]:
  """How many lanes a row has, at first and when most segments are done."""
  widths = [slots]
  # Each is one more program to compile, and few lanes are cheap as they are.
  while len(widths) < _MOST_WIDTHS and batch * widths[-1] >= 4 * _FEW_LANES:
    widths.append(-(-widths[-1] // 4))
  return widths


def _narrow(state: Lanes, width: int) -> Lanes:
  """Gives the lanes of segments that are done to none."""
  batch, lanes = state.slot_BQ.shape
  order_BQ = jnp.argsort(~state.is_active_BQ, axis=1, stable=True)[:, :width]

  def of_rows(x_BQ):
    return jnp.take_along_axis(x_BQ, order_BQ, axis=1)

  def kept(x_NX):
    # Row by row, so that rows may lie on different devices.
    x_BQX = x_NX.reshape(batch, lanes, *x_NX.shape[1:])
    taken = jax.vmap(lambda x_QX, order_Q: x_QX[order_Q])(x_BQX, order_BQ)
    return taken.reshape(batch * width, *x_NX.shape[1:])

  return state.replace(
    slot_BQ=of_rows(state.slot_BQ),
    is_active_BQ=of_rows(state.is_active_BQ),
    fed_BQ=of_rows(state.fed_BQ),
    cache=jax.tree.map(kept, state.cache),
  )
