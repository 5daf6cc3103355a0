"""Codebook whose entries are moving averages (EMA) of the vectors they won.

A forward pass only adds to the sums of the step (`observe`); `advance` turns
them into the next codebook, once per optimizer step. So any split of a batch
over microbatches or devices gives the same codebook.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.nearest_code import nearest_code
from abstractinator.types import Array

# Reservoir places per entry of a codebook that k-means initialises.
_KMEANS_PLACES = 4
_KMEANS_ITERATIONS = 10
# Vectors closer than this part of their length are equal but for rounding.
_EQUAL = 1e-5


@flax.struct.dataclass
class CodebookState:
  """State of an EMA codebook.

  Attributes:
    codebook_KC: Entries, [K, C] float32.
    ema_count_K: Moving average of the hits per step, [K] float32; it starts at
      1, so that entries without hits keep their place.
    ema_sum_KC: Moving average of the summed vectors per step, [K, C] float32.
    last_hit_step_K: Step in which an entry last won or was replaced, [K] int32.
    step: Optimizer steps seen, [] int32.
    reservoir_RC: Recent vectors that replace dead entries, [R, C] float32; R is
      K, or 4 K to have enough vectors for k-means.
    reservoir_step_R: Step that each vector of the reservoir is from, [R] int32;
      -1 for an empty place, or a vector that has become an entry.
    hits_K: Hits of the step so far, [K] float32.
    sum_KC: Sum of the vectors of the step so far, [K, C] float32.
    priority_R: Highest priority among the candidates of the step so far for
      each place of the reservoir, [R] uint32; 0 without a candidate.
    candidate_RC: Candidate that has this priority, [R, C] float32.
    decay: Factor of the moving averages per step.
    reset_interval_steps: Number of steps from one replacement of dead entries
      to the next.
    reset_after_steps: Number of steps without hits after which an entry is
      dead.
    reset_usage: Fraction of the mean count below which an entry is dead, too.
    protected: Entries that are never replaced.
    kmeans_step: Step whose vectors are clustered, and the centers become the
      entries; None for no such step.
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
  """Returns a codebook of normal entries that the first steps may replace.

  Args:
    key: Key of jax.random.
    size: Number of entries, K.
    width: Width of an entry, C.
    decay: See `CodebookState`, as the arguments after it.
    reset_interval_steps: See `CodebookState`.
    reset_after_steps: See `CodebookState`.
    reset_usage: See `CodebookState`.
    protected: See `CodebookState`.
    kmeans_step: See `CodebookState`.
  """
  places = size if kmeans_step is None else _KMEANS_PLACES * size
  codebook_KC = jax.random.normal(key, (size, width), jnp.float32)
  return CodebookState(
    codebook_KC=codebook_KC,
    ema_count_K=jnp.ones((size,), jnp.float32),
    # A copy: the arrays of a state are donated one by one.
    ema_sum_KC=codebook_KC + 0.0,
    # No entry has been hit: those without hits in the first step are dead at
    # once, and are replaced by real vectors.
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
    state: Codebook and sums so far.
    x_NC: Vectors, [N, C] float32; no gradient is taken.
    code_N: Nearest entry of each vector, [N] int32.
    is_valid_N: True for vectors that count, [N] bool; those of empty slots
      change nothing.
    name_N: Identity of each vector that does not depend on the batch it came
      in, [N] uint32; it decides which vectors enter the reservoir.

  Returns:
    The state with new sums. The order of calls does not matter, beyond the
    rounding of sums.
  """
  x_NC = lax.stop_gradient(x_NC.astype(jnp.float32))
  size = state.hits_K.shape[0]
  hits_K, sum_KC = _sum_by_code(x_NC, code_N, is_valid_N, size)

  places = state.priority_R.shape[0]
  # Each vector is a candidate for one random place, with a random priority.
  lot_N = _hash(name_N + _hash(state.step.astype(jnp.uint32)))
  place_N = jnp.where(is_valid_N, lot_N % jnp.uint32(places), places)
  place_N = place_N.astype(jnp.int32)
  priority_N = _hash(lot_N) | jnp.uint32(1)
  best_R = jax.ops.segment_max(priority_N, place_N, places + 1)[:places]
  best_R = jnp.maximum(best_R, state.priority_R)
  is_best_N = is_valid_N & (priority_N == best_R[place_N])
  winner_R = jax.ops.segment_max(
    jnp.where(is_best_N, jnp.arange(x_NC.shape[0]), -1), place_N, places + 1
  )[:places]
  candidate_RC = jnp.where(
    (winner_R >= 0)[:, None], x_NC[winner_R], state.candidate_RC
  )
  return dataclasses.replace(
    state,
    hits_K=state.hits_K + hits_K,
    sum_KC=state.sum_KC + sum_KC,
    priority_R=best_R,
    candidate_RC=candidate_RC,
  )


def advance(state: CodebookState) -> CodebookState:
  """Turns the sums of the step into the next codebook and clears them.

  count <- decay count + (1 - decay) hits, sum <- decay sum + (1 - decay) sum of
  the step, entry = sum / count, with smoothed counts; an entry without hits
  stays where it is. Then, every `reset_interval_steps`, each dead entry becomes
  a vector of the reservoir that no entry is or has been, while there are any.

  Source: van den Oord et al., arXiv:1711.00937, appendix A.1.
  """
  is_new_R = state.priority_R > 0
  keep = jnp.float32(state.decay)
  count_K = keep * state.ema_count_K + (1 - keep) * state.hits_K
  sum_KC = keep * state.ema_sum_KC + (1 - keep) * state.sum_KC
  size, total = count_K.shape[0], jnp.sum(count_K)
  smooth_K = (count_K + 1e-5) / (total + size * 1e-5) * total
  state = dataclasses.replace(
    state,
    # Smoothing would move an entry whose count has decayed towards zero.
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
  """Makes the k-means centers of the vectors of the step the entries."""
  centers_KC, is_new_K = kmeans(
    state.reservoir_RC,
    state.reservoir_step_R == state.step - 1,
    state.hits_K.shape[0],
    iterations=_KMEANS_ITERATIONS,
  )
  is_new_K &= ~_is_protected(state)
  codebook_KC = jnp.where(is_new_K[:, None], centers_KC, state.codebook_KC)
  return dataclasses.replace(
    state,
    codebook_KC=codebook_KC,
    ema_count_K=jnp.where(is_new_K, 1.0, state.ema_count_K),
    ema_sum_KC=jnp.where(is_new_K[:, None], centers_KC, state.ema_sum_KC),
    last_hit_step_K=jnp.where(is_new_K, state.step, state.last_hit_step_K),
  )


def _is_protected(state: CodebookState) -> Array:
  """Returns which entries are never replaced, [K] bool."""
  codes = jnp.asarray(state.protected, jnp.int32)
  return jnp.zeros(state.hits_K.shape, bool).at[codes].set(True)


def _replace_dead(state: CodebookState) -> CodebookState:
  """Replaces dead entries by the freshest vectors that are no entry yet."""
  age_K = state.step - 1 - state.last_hit_step_K
  least = state.reset_usage * jnp.mean(state.ema_count_K)
  is_dead_K = (age_K >= state.reset_after_steps) | (state.ema_count_K < least)
  is_dead_K &= ~_is_protected(state)
  # The n-th dead entry takes the n-th freshest vector. Two entries must not be
  # equal: rounding would decide which one wins.
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
  return dataclasses.replace(
    state,
    codebook_KC=jnp.where(reset, vector_KC, state.codebook_KC),
    # The count is large enough for the entry not to be dead at once.
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
  """Returns whether no vector of a lower rank or index is equal, [N] bool.

  Vectors are equal if they differ by rounding in float32 only. Only neighbours
  along one direction are compared: equal vectors are neighbours along any,
  but for chance. A pair that is missed costs one entry that nothing may hit.
  """
  count, width = x_NC.shape
  along_N = jnp.sum(x_NC * jnp.sin(1.0 + jnp.arange(width)), axis=1)
  order_N = jnp.argsort(along_N)
  x_NC = x_NC[order_N]
  distance_N = jnp.sum(jnp.square(x_NC[1:] - x_NC[:-1]), axis=1)
  least_N = _EQUAL**2 * jnp.sum(jnp.square(x_NC[1:]), axis=1)
  is_other_N = ~(distance_N <= least_N)
  group_N = jnp.pad(jnp.cumsum(is_other_N), (1, 0))
  place_N = jnp.argsort(jnp.argsort(rank_N))[order_N]
  first_N = jax.ops.segment_min(place_N, group_N, num_segments=count)
  is_first_N = place_N == first_N[group_N]
  return jnp.zeros((count,), bool).at[order_N].set(is_first_N)


def kmeans(
  x_NC: Array, is_valid_N: Array, num_centers: int, *, iterations: int
) -> tuple[Array, Array]:
  """Clusters vectors by Lloyd's algorithm, starting from the first valid ones.

  jax.scipy.cluster has the assignment to centers only, in memory that grows as
  N K C.

  Args:
    x_NC: Vectors, [N, C] float32, N at least `num_centers`.
    is_valid_N: True for vectors that count, [N] bool.
    num_centers: Number of clusters, K.
    iterations: Number of times that centers move to the mean of their vectors.

  Returns:
    Centers, [K, C] float32, and which of them have vectors, [K] bool. With
    fewer vectors than centers, or equal vectors, some centers have none.
  """
  x_NC = jnp.where(is_valid_N[:, None], x_NC, 0.0)
  order_N = jnp.argsort(~is_valid_N, stable=True)[:num_centers]
  # Missing vectors are copies of the first. A copy loses every tie, so that its
  # center stays empty.
  order_N = jnp.where(is_valid_N[order_N], order_N, order_N[0])

  def step(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    centers_KC = carry[0]
    code_N = nearest_code(x_NC, centers_KC, implementation='xla')
    hits_K, sum_KC = _sum_by_code(x_NC, code_N, is_valid_N, num_centers)
    mean_KC = sum_KC / jnp.maximum(hits_K, 1.0)[:, None]
    has_vectors_K = hits_K > 0
    return jnp.where(has_vectors_K[:, None], mean_KC, centers_KC), has_vectors_K

  start = (x_NC[order_N], jnp.zeros((num_centers,), bool))
  return lax.fori_loop(0, iterations, step, start)


def _sum_by_code(
  x_NC: Array, code_N: Array, is_valid_N: Array, size: int
) -> tuple[Array, Array]:
  """Returns the hits [K] and the summed valid vectors [K, C] of each code."""
  # Invalid vectors go to an entry past the end, which is dropped.
  code_N = jnp.where(is_valid_N, code_N, size)
  ones_N = is_valid_N.astype(jnp.float32)
  hits_K = jax.ops.segment_sum(ones_N, code_N, size + 1)[:size]
  return hits_K, jax.ops.segment_sum(x_NC, code_N, size + 1)[:size]


def _hash(x: Array) -> Array:
  """Scrambles uint32 (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def unit(x: Array) -> Array:
  """Scales vectors [..., C] float32 to length 1; zeros stay zeros."""
  return x * lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def straight_through(y_BPC: Array, entry_BPC: Array) -> Array:
  """Returns the value of the entry with the gradient of the input y.

  Source: Bengio et al., arXiv:1308.3432; y + stop_gradient(entry - y).
  """
  return y_BPC + lax.stop_gradient(entry_BPC - y_BPC)
