"""Generation of bytes by the entropy model of the first level alone."""

import dataclasses

import flax.struct
import jax.numpy as jnp

from abstractinator.decoding.loop import while_loop
from abstractinator.decoding.state import Request
from abstractinator.model.entropy_model import EntropyCache
from abstractinator.model.pyramid import Pyramid
from abstractinator.ops.sampling import draw_ids
from abstractinator.types import Array, Special

# Most new bytes of a row per call.
_BYTES = 64


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


def start(
  pyramid: Pyramid,
  ids_BS: Array,
  count_B: Array,
  request: Request,
  *,
  capacity: int,
) -> EntropyOnlyState:
  """Reads prompts, with the arguments of `generate.start`."""
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
  pyramid: Pyramid, state: EntropyOnlyState, stopped_B: Array
) -> tuple[Array, Array, EntropyOnlyState]:
  """Draws the next bytes, with arguments and results of `generate.extend`.

  A row is done after EOS or its limit, which it never exceeds.
  """
  draws, limit_B = state.request.draws_of_level(0), state.request.limit_B
  symbol_V = jnp.arange(state.logits_BV.shape[1]) - pyramid.num_ids
  is_next_V = (symbol_V < 0) | (symbol_V == Special.EOS)

  def one_step(
    pyramid: Pyramid, carry: tuple[Array, Array, EntropyOnlyState]
  ) -> tuple[Array, Array, EntropyOnlyState]:
    number, bytes_BN, state = carry
    ids_B = draw_ids(
      draws.fold(state.num_bytes_B),
      jnp.where(is_next_V, state.logits_BV, -jnp.inf),
    )
    is_eos_B = ids_B == pyramid.num_ids + Special.EOS
    num_bytes_B = state.num_bytes_B + (~state.is_done_B & ~is_eos_B)
    is_done_B = state.is_done_B | is_eos_B | (num_bytes_B >= limit_B)
    predicted, cache = pyramid.levels[0].compressor.entropy_model.step(
      ids_B, jnp.zeros_like(ids_B), state.cache, ~is_done_B
    )
    logits_BV = jnp.where(is_done_B[:, None], state.logits_BV, predicted.logits)
    state = dataclasses.replace(
      state,
      cache=cache,
      logits_BV=logits_BV,
      num_bytes_B=num_bytes_B,
      is_done_B=is_done_B,
    )
    return number + 1, bytes_BN.at[:, number].set(ids_B), state

  before_B = state.num_bytes_B
  state = dataclasses.replace(state, is_done_B=state.is_done_B | stopped_B)
  bytes_BN = jnp.zeros((len(stopped_B), _BYTES), jnp.int32)
  _, bytes_BN, state = while_loop(
    lambda carry: (carry[0] < _BYTES) & ~jnp.all(carry[2].is_done_B),
    one_step,
    pyramid,
    (jnp.zeros((), jnp.int32), bytes_BN, state),
  )
  return bytes_BN, state.num_bytes_B - before_B, state
