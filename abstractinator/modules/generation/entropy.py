"""Rows of bytes, continued by the entropy model of the first level alone."""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.modules.entropy_model import EntropyCache
from abstractinator.modules.generation.request import Request
from abstractinator.ops.cross_entropy import cross_entropy
from abstractinator.ops.draw import draw_ids
from abstractinator.types import Array, Special


@flax.struct.dataclass
class EntropyState:
  """Where rows stand.

  Attributes:
    request: What is asked for; bytes are drawn as ids of levels are.
    cache: Of the entropy model.
    logits_BV: [B, V] float32, of the next byte.
    num_bytes_B: [B] int32, new bytes so far.
    is_done_B: [B] bool, rows that do not go on.
  """

  request: Request
  cache: EntropyCache
  logits_BV: Array
  num_bytes_B: Array
  is_done_B: Array


@flax.struct.dataclass
class EntropyExtension:
  """New bytes.

  Attributes:
    bytes_BN: [B, N] int32, those of each row at the front.
    count_B: [B] int32, how many.
    nats_BN: [B, N] float32, -log p of each, and of the EOS after them.
  """

  bytes_BN: Array
  count_B: Array
  nats_BN: Array


def start(
  pyramid: nn.Module,
  ids_BS: Array,
  count_B: Array,
  request: Request,
  *,
  capacity: int,
) -> EntropyState:
  """Reads prompts; see `pyramid.start`."""
  batch, size = ids_BS.shape
  model = pyramid.levels[0].compressor.entropy_model
  document_BS = jnp.where(jnp.arange(size) < count_B[:, None], 0, -1)
  _, cache = model.prefill(
    ids_BS,
    document_BS.astype(jnp.int32),
    model.init_cache(batch, max(capacity, size) + 1, pyramid.dtype),
  )
  last_B = ids_BS[jnp.arange(batch), jnp.maximum(count_B - 1, 0)]
  zero_B = jnp.zeros((batch,), jnp.int32)
  predicted, cache = model.step(last_B, zero_B, cache, zero_B == 0)
  return EntropyState(
    request=request,
    cache=cache,
    logits_BV=predicted.logits,
    num_bytes_B=zero_B,
    is_done_B=request.limit_B <= 0,
  )


def extend(
  pyramid: nn.Module, state: EntropyState, stopped_B: Array, *, num_bytes: int
) -> tuple[EntropyExtension, EntropyState]:
  """The next bytes; see `pyramid.extend`."""
  request, batch = state.request, len(stopped_B)
  symbol_V = jnp.arange(state.logits_BV.shape[1]) - pyramid.num_ids
  is_next_V = (symbol_V < 0) | (symbol_V == Special.EOS)
  row_B = jnp.arange(batch)
  zero_B = jnp.zeros((batch,), jnp.int32)

  def one_step(pyramid, carry):
    number, state, out = carry
    ids_B = draw_ids(
      request.draws_of_level(0).fold(state.num_bytes_B),
      jnp.where(is_next_V, state.logits_BV, -jnp.inf),
    )
    is_active_B = ~state.is_done_B
    is_eos_B = ids_B == pyramid.num_ids + Special.EOS
    at_B = jnp.where(is_active_B, number, num_bytes)
    nats_B = cross_entropy(state.logits_BV, ids_B)
    out = EntropyExtension(
      bytes_BN=out.bytes_BN.at[row_B, at_B].set(ids_B, mode='drop'),
      count_B=out.count_B + (is_active_B & ~is_eos_B),
      nats_BN=out.nats_BN.at[row_B, at_B].set(nats_B, mode='drop'),
    )
    num_bytes_B = state.num_bytes_B + (is_active_B & ~is_eos_B)
    is_done_B = state.is_done_B | is_eos_B | (num_bytes_B >= request.limit_B)
    predicted, cache = pyramid.levels[0].compressor.entropy_model.step(
      ids_B, zero_B, state.cache, ~is_done_B
    )
    state = state.replace(
      cache=cache,
      logits_BV=jnp.where(
        is_done_B[:, None], state.logits_BV, predicted.logits
      ),
      num_bytes_B=num_bytes_B,
      is_done_B=is_done_B,
    )
    return number + 1, state, out

  empty = EntropyExtension(
    bytes_BN=jnp.zeros((batch, num_bytes), jnp.int32),
    count_B=zero_B,
    nats_BN=jnp.zeros((batch, num_bytes), jnp.float32),
  )
  state = state.replace(is_done_B=state.is_done_B | stopped_B)
  _, state, out = nn.while_loop(
    lambda _, carry: (carry[0] < num_bytes) & ~jnp.all(carry[1].is_done_B),
    one_step,
    pyramid,
    (jnp.zeros((), jnp.int32), state, empty),
  )
  return out, state
