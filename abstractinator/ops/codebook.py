"""State of an EMA codebook, and how one optimizer step moves it.

A forward pass only adds to the sums of the step (`observe`); `advance` turns
them into the next codebook, once per optimizer step. So any split of a batch
over microbatches or devices gives the same codebook.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.kmeans import kmeans
from abstractinator.types import Array

_KMEANS_PLACES = 4
_KMEANS_ITERATIONS = 10
# Of their length, the distance of vectors that are the same but for rounding.
_ALIKE = 1e-5


@flax.struct.dataclass
class CodebookState:
  """An EMA codebook.

  Attributes:
    codebook_KC: [K, C] float32 entries.
    ema_count_K: [K] float32, moving average of the hits per step; starts at 1,
      so that entries without hits keep their place.
    ema_sum_KC: [K, C] float32, moving average of the summed vectors per step.
    last_hit_step_K: [K] int32, when an entry last won or was replaced.
    step: [] int32, optimizer steps seen.
    reservoir_RC: [R, C] float32, recent vectors that replace dead entries; R
      is K, or 4 K to have enough of them for k-means.
    reservoir_step_R: [R] int32, step each one is from, -1 for none, or none
      that has not become an entry.
    hits_K, sum_KC, priority_R, candidate_RC: the sums of the step so far:
      hits, summed vectors, and for each place of the reservoir the candidate
      of the highest priority.
    decay: Of the moving averages, per step.
    reset_interval_steps: Every so many steps, dead entries are replaced.
    reset_after_steps: An entry without hits for so many steps is dead.
    reset_usage: So is an entry with less than this fraction of the mean count.
    protected: Entries that are never replaced.
    kmeans_step: The step whose vectors' centers become the entries, or None.
  """

  codebook_KC: Array
  ema_count_K: Array
  ema_sum_KC: Array
  last_hit_step_K: Array
  step: Array
  reservoir_RC: Array
  reservoir_step_R: Array
  hits_K: Array
  sum_KC: Array
  priority_R: Array
  candidate_RC: Array
  decay: float = flax.struct.field(pytree_node=False)
  reset_interval_steps: int = flax.struct.field(pytree_node=False)
  reset_after_steps: int = flax.struct.field(pytree_node=False)
  reset_usage: float = flax.struct.field(pytree_node=False)
  protected: tuple[int, ...] = flax.struct.field(pytree_node=False)
  kmeans_step: int | None = flax.struct.field(pytree_node=False)


def initial_state(
  key: Array,
  size: int,
  width: int,
  *,
  decay: float,
  reset_interval_steps: int,
  reset_after_steps: int,
  reset_usage: float,
  protected: tuple[int, ...],
  kmeans_step: int | None,
) -> CodebookState:
  """A codebook of `size` normal entries that the first steps may replace."""
  places = size if kmeans_step is None else _KMEANS_PLACES * size
  codebook_KC = jax.random.normal(key, (size, width), jnp.float32)
  return CodebookState(
    codebook_KC=codebook_KC,
    ema_count_K=jnp.ones((size,), jnp.float32),
    # A copy: the arrays of a state are donated one by one.
    ema_sum_KC=codebook_KC + 0.0,
    # Nothing has been hit: entries the first step leaves out are dead at once,
    # and start over from real vectors.
    last_hit_step_K=jnp.full((size,), -reset_after_steps, jnp.int32),
    step=jnp.zeros((), jnp.int32),
    reservoir_RC=jnp.zeros((places, width), jnp.float32),
    reservoir_step_R=jnp.full((places,), -1, jnp.int32),
    hits_K=jnp.zeros((size,), jnp.float32),
    sum_KC=jnp.zeros((size, width), jnp.float32),
    priority_R=jnp.zeros((places,), jnp.uint32),
    candidate_RC=jnp.zeros((places, width), jnp.float32),
    decay=decay,
    reset_interval_steps=reset_interval_steps,
    reset_after_steps=reset_after_steps,
    reset_usage=reset_usage,
    protected=protected,
    kmeans_step=kmeans_step,
  )


def observe(
  state: CodebookState,
  x_NC: Array,
  code_N: Array,
  is_valid_N: Array,
  name_N: Array,
) -> CodebookState:
  """Adds vectors and their codes to the sums of the step.

  Args:
    state: The state.
    x_NC: [N, C] float32 vectors; no gradient is taken.
    code_N: [N] int32, nearest entry of each.
    is_valid_N: [N] bool; vectors of empty slots touch nothing.
    name_N: [N] uint32, an identity of each vector that does not depend on the
      batch it came in; it decides which vectors enter the reservoir.

  Returns:
    The state with new sums. The order of calls does not matter, beyond the
    rounding of sums.
  """
  x_NC = lax.stop_gradient(x_NC.astype(jnp.float32))
  size = state.hits_K.shape[0]
  # Invalid vectors go to an entry past the end, which is dropped.
  code_N = jnp.where(is_valid_N, code_N, size)
  add = dict(num_segments=size + 1)
  hits_K = jax.ops.segment_sum(is_valid_N.astype(jnp.float32), code_N, **add)
  sum_KC = jax.ops.segment_sum(x_NC, code_N, **add)

  places = state.priority_R.shape[0]
  add = dict(num_segments=places + 1)
  # Each vector applies for one place, at random, with a random priority.
  lot_N = _hash(name_N + _hash(state.step.astype(jnp.uint32)))
  place_N = jnp.where(is_valid_N, lot_N % jnp.uint32(places), places)
  place_N = place_N.astype(jnp.int32)
  priority_N = _hash(lot_N) | jnp.uint32(1)
  best_R = jax.ops.segment_max(priority_N, place_N, **add)[:places]
  best_R = jnp.maximum(best_R, state.priority_R)
  is_best_N = is_valid_N & (priority_N == best_R[place_N])
  winner_R = jax.ops.segment_max(
    jnp.where(is_best_N, jnp.arange(x_NC.shape[0]), -1), place_N, **add
  )[:places]
  candidate_RC = jnp.where(
    (winner_R >= 0)[:, None], x_NC[winner_R], state.candidate_RC
  )
  return state.replace(
    hits_K=state.hits_K + hits_K[:size],
    sum_KC=state.sum_KC + sum_KC[:size],
    priority_R=best_R,
    candidate_RC=candidate_RC,
  )


def advance(state: CodebookState) -> CodebookState:
  """Turns the sums of the step into the next codebook and clears them.

  count <- decay count + (1 - decay) hits, sums likewise, entry = sum / count,
  with the counts smoothed as in van den Oord et al., arXiv:1711.00937, appendix
  A.1; an entry without hits stays where it is. Then, every
  `reset_interval_steps`, dead entries become vectors of the reservoir, each
  another one that no entry is or has been, as far as it reaches.
  """
  is_new_R = state.priority_R > 0
  keep = jnp.float32(state.decay)
  count_K = keep * state.ema_count_K + (1 - keep) * state.hits_K
  sum_KC = keep * state.ema_sum_KC + (1 - keep) * state.sum_KC
  size, total = count_K.shape[0], jnp.sum(count_K)
  smooth_K = (count_K + 1e-5) / (total + size * 1e-5) * total
  state = state.replace(
    # Smoothing would draw an entry whose count has decayed towards zero.
    codebook_KC=jnp.where(
      state.hits_K[:, None] > 0, sum_KC / smooth_K[:, None], state.codebook_KC
    ),
    ema_count_K=count_K,
    ema_sum_KC=sum_KC,
    last_hit_step_K=jnp.where(
      state.hits_K > 0, state.step, state.last_hit_step_K
    ),
    step=state.step + 1,
    reservoir_RC=jnp.where(
      is_new_R[:, None], state.candidate_RC, state.reservoir_RC
    ),
    reservoir_step_R=jnp.where(is_new_R, state.step, state.reservoir_step_R),
    hits_K=jnp.zeros_like(state.hits_K),
    sum_KC=jnp.zeros_like(state.sum_KC),
    priority_R=jnp.zeros_like(state.priority_R),
    candidate_RC=jnp.zeros_like(state.candidate_RC),
  )
  if state.kmeans_step is not None:
    is_start = state.step - 1 == state.kmeans_step
    state = lax.cond(is_start, _start_over, lambda s: s, state)
  is_due = (state.step - 1) % state.reset_interval_steps == 0
  return lax.cond(is_due, _replace_dead, lambda s: s, state)


def _start_over(state: CodebookState) -> CodebookState:
  """Entries become the centers of the vectors of the step."""
  centers_KC, is_new_K = kmeans(
    state.reservoir_RC,
    state.reservoir_step_R == state.step - 1,
    state.hits_K.shape[0],
    iterations=_KMEANS_ITERATIONS,
  )
  is_new_K &= ~_is_protected(state)
  codebook_KC = jnp.where(is_new_K[:, None], centers_KC, state.codebook_KC)
  return state.replace(
    codebook_KC=codebook_KC,
    ema_count_K=jnp.where(is_new_K, 1.0, state.ema_count_K),
    ema_sum_KC=jnp.where(is_new_K[:, None], centers_KC, state.ema_sum_KC),
    last_hit_step_K=jnp.where(is_new_K, state.step, state.last_hit_step_K),
  )


def _is_protected(state: CodebookState) -> Array:
  """[K] bool."""
  codes = jnp.asarray(state.protected, jnp.int32)
  return jnp.zeros(state.hits_K.shape, bool).at[codes].set(True)


def _replace_dead(state: CodebookState) -> CodebookState:
  age_K = state.step - 1 - state.last_hit_step_K
  least = state.reset_usage * jnp.mean(state.ema_count_K)
  is_dead_K = (age_K >= state.reset_after_steps) | (state.ema_count_K < least)
  is_dead_K &= ~_is_protected(state)
  # The n-th dead entry takes the n-th of the freshest vectors that are no entry
  # yet: of two entries alike, rounding would say which one wins.
  is_first_N = _is_first(
    jnp.concatenate([state.codebook_KC, state.reservoir_RC]),
    jnp.concatenate(
      [jnp.full(is_dead_K.shape, -state.step), -state.reservoir_step_R]
    ),
  )
  is_new_R = is_first_N[state.hits_K.size :] & (state.reservoir_step_R >= 0)
  new_step_R = jnp.where(is_new_R, state.reservoir_step_R, -1)
  order_R = jnp.argsort(-new_step_R)
  rank_K = jnp.cumsum(is_dead_K) - 1
  source_K = order_R[jnp.maximum(rank_K, 0)]
  is_reset_K = is_dead_K & is_new_R[source_K]
  vector_KC = state.reservoir_RC[source_K]
  reset = is_reset_K[:, None]
  places = state.reservoir_step_R.shape[0]
  used_K = jnp.where(is_reset_K, source_K, places)
  return state.replace(
    codebook_KC=jnp.where(reset, vector_KC, state.codebook_KC),
    # Enough not to be dead at once.
    ema_count_K=jnp.where(
      is_reset_K, jnp.maximum(least, 1.0), state.ema_count_K
    ),
    ema_sum_KC=jnp.where(
      reset, vector_KC * jnp.maximum(least, 1.0), state.ema_sum_KC
    ),
    last_hit_step_K=jnp.where(is_reset_K, state.step, state.last_hit_step_K),
    reservoir_step_R=new_step_R.at[used_K].set(-1, mode='drop'),
  )


def _is_first(x_NC: Array, rank_N: Array) -> Array:
  """Whether no vector of a lower rank or index is the same.

  But for rounding in float32. Vectors alike are neighbours along any direction,
  but for chance, so that nothing but neighbours is compared: what is missed is
  one more entry that nothing may hit.
  """
  count, width = x_NC.shape
  along_N = jnp.sum(x_NC * jnp.sin(1.0 + jnp.arange(width)), axis=1)
  order_N = jnp.argsort(along_N)
  x_NC = x_NC[order_N]
  distance_N = jnp.sum(jnp.square(x_NC[1:] - x_NC[:-1]), axis=1)
  least_N = _ALIKE**2 * jnp.sum(jnp.square(x_NC[1:]), axis=1)
  is_other_N = ~(distance_N <= least_N)
  group_N = jnp.pad(jnp.cumsum(is_other_N), (1, 0))
  place_N = jnp.argsort(jnp.argsort(rank_N))[order_N]
  first_N = jax.ops.segment_min(place_N, group_N, num_segments=count)
  is_first_N = place_N == first_N[group_N]
  return jnp.zeros((count,), bool).at[order_N].set(is_first_N)


def _hash(x: Array) -> Array:
  """Scrambles uint32 (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
