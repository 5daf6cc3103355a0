"""Generation of bytes by the entropy model of the first level alone."""

import dataclasses

import flax.struct
import jax.numpy as jnp
from optax.losses import softmax_cross_entropy_with_integer_labels

from abstractinator.decoding.loop import while_loop
from abstractinator.decoding.state import Request
from abstractinator.model.entropy_model import EntropyCache
from abstractinator.model.pyramid import Pyramid
from abstractinator.ops.sampling import draw_ids
from abstractinator.types import Array, Special


@flax.struct.dataclass
class EntropyOnlyState:
  """State of generation by the entropy model, one entry per row.

  Attributes:
    request: Sampling settings and limits; bytes are drawn as ids of levels are.
    cache: KV cache of the entropy model.
    logits_BV: Prediction of the next byte, [B, V] float32.
    num_bytes_B: New bytes so far, [B] int32.
    is_done_B: Rows that decode no more bytes, [B] bool.
  """

  request: Request
  cache: EntropyCache
  logits_BV: Array
  num_bytes_B: Array
  is_done_B: Array


@flax.struct.dataclass
class EntropyOnlyExtension:
  """New bytes.

  Attributes:
    bytes_BN: New bytes, those of each row at the front, [B, N] int32.
    count_B: Their number, [B] int32.
    nats_BN: -log p of each byte, and of the EOS after the last, [B, N] float32.
  """

  bytes_BN: Array
  count_B: Array
  nats_BN: Array


def start(
  pyramid: Pyramid,
  ids_BS: Array,
  count_B: Array,
  request: Request,
  *,
  capacity: int,
) -> EntropyOnlyState:
  """Reads prompts.

  Args:
    pyramid: A bound pyramid.
    ids_BS: Bytes of the prompts, [B, S] int32.
    count_B: Bytes of each prompt, 0 to S, [B] int32.
    request: Sampling settings and limits.
    capacity: Bytes that a row may come to.

  Returns:
    The state.
  """
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
  return EntropyOnlyState(
    request=request,
    cache=cache,
    logits_BV=predicted.logits,
    num_bytes_B=zero_B,
    is_done_B=request.limit_B <= 0,
  )


def extend(
  pyramid: Pyramid,
  state: EntropyOnlyState,
  stopped_B: Array,
  *,
  num_bytes: int,
) -> tuple[EntropyOnlyExtension, EntropyOnlyState]:
  """Draws the next bytes.

  Args:
    pyramid: A bound pyramid.
    state: State after the previous call, or of `start`.
    stopped_B: Rows that need no more bytes, [B] bool.
    num_bytes: N, the most new bytes of a row in this call.

  Returns:
    New bytes, and the state. A row is done after EOS or its limit.
  """
  request, batch = state.request, len(stopped_B)
  symbol_V = jnp.arange(state.logits_BV.shape[1]) - pyramid.num_ids
  is_next_V = (symbol_V < 0) | (symbol_V == Special.EOS)
  row_B = jnp.arange(batch)
  zero_B = jnp.zeros((batch,), jnp.int32)

  def one_step(
    pyramid: Pyramid,
    carry: tuple[Array, EntropyOnlyState, EntropyOnlyExtension],
  ) -> tuple[Array, EntropyOnlyState, EntropyOnlyExtension]:
    number, state, out = carry
    ids_B = draw_ids(
      request.draws_of_level(0).fold(state.num_bytes_B),
      jnp.where(is_next_V, state.logits_BV, -jnp.inf),
    )
    is_active_B = ~state.is_done_B
    is_eos_B = ids_B == pyramid.num_ids + Special.EOS
    at_B = jnp.where(is_active_B, number, num_bytes)
    nats_B = softmax_cross_entropy_with_integer_labels(state.logits_BV, ids_B)
    out = EntropyOnlyExtension(
      bytes_BN=out.bytes_BN.at[row_B, at_B].set(ids_B, mode='drop'),
      count_B=out.count_B + (is_active_B & ~is_eos_B),
      nats_BN=out.nats_BN.at[row_B, at_B].set(nats_B, mode='drop'),
    )
    num_bytes_B = state.num_bytes_B + (is_active_B & ~is_eos_B)
    is_done_B = state.is_done_B | is_eos_B | (num_bytes_B >= request.limit_B)
    predicted, cache = pyramid.levels[0].compressor.entropy_model.step(
      ids_B, zero_B, state.cache, ~is_done_B
    )
    state = dataclasses.replace(
      state,
      cache=cache,
      logits_BV=jnp.where(
        is_done_B[:, None], state.logits_BV, predicted.logits
      ),
      num_bytes_B=num_bytes_B,
      is_done_B=is_done_B,
    )
    return number + 1, state, out

  empty = EntropyOnlyExtension(
    bytes_BN=jnp.zeros((batch, num_bytes), jnp.int32),
    count_B=zero_B,
    nats_BN=jnp.zeros((batch, num_bytes), jnp.float32),
  )
  state = dataclasses.replace(state, is_done_B=state.is_done_B | stopped_B)
  _, state, out = while_loop(
    lambda carry: (carry[0] < num_bytes) & ~jnp.all(carry[1].is_done_B),
    one_step,
    pyramid,
    (jnp.zeros((), jnp.int32), state, empty),
  )
  return out, state
