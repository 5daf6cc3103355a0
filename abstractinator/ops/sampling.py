"""Which ids of a prediction count, how uncertain it is, and draws from it."""

import jax
import jax.numpy as jnp

from abstractinator.types import Array

BITS_PER_NAT = 1.4426950408889634


def filter_logits(
  logits: Array,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  min_p: float = 0.0,
) -> Array:
  """Excludes unlikely ids.

  The filters follow each other: temperature, then top_k, then top_p of what is
  left, then min_p. The most likely id always stays; of equal ids the lower one
  counts as the more likely. Each filter that is off costs nothing.

  Args:
    logits: [..., V] any float type.
    temperature: Divides the logits, at least 1e-6; or 0, which keeps the most
      likely id only.
    top_k: Keeps exactly the k most likely ids; 0 for all.
    top_p: Keeps the fewest most likely ids whose probability is above top_p;
      the one that crosses it stays. 1 for all.
    min_p: Keeps ids at least min_p times as probable as the most likely one; 0
      for all.

  Returns:
    [..., V] float32, divided by the temperature, up to a constant; -inf for
    excluded ids.

  Raises:
    ValueError: If a filter is out of its range.

  Source: top_k Fan et al., arXiv:1805.04833; top_p Holtzman et al.,
    arXiv:1904.09751; min_p Nguyen et al., arXiv:2407.01082.
  """
  ok = temperature == 0 or temperature >= 1e-6
  _require(ok, 'temperature', temperature, '0, or >= 1e-6')
  _require(top_k >= 0, 'top_k', top_k, '>= 0')
  _require(0 < top_p <= 1, 'top_p', top_p, '0 < value <= 1')
  _require(0 <= min_p <= 1, 'min_p', min_p, '0 to 1')
  logits = logits.astype(jnp.float32)
  if temperature == 0:
    top_k = 1
  elif temperature != 1:
    # What is largest stays finite whatever divides it.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature
  if top_k:
    logits = _keep(logits, _rank(logits) < top_k)
  if top_p < 1:
    logits = _keep(logits, _is_in_nucleus(logits, top_p))
  if min_p > 0:
    top = jnp.max(logits, axis=-1, keepdims=True)
    logits = _keep(logits, logits >= top + jnp.log(min_p))
  return logits


def sample(key: Array, logits: Array) -> Array:
  """Draws ids.

  Args:
    key: Of jax.random.
    logits: [..., V] float32, from `filter_logits`: with a temperature of 0 the
      draw is the most likely id.

  Returns:
    [...] int32.
  """
  return jax.random.categorical(key, logits).astype(jnp.int32)


def entropy_bits(logits: Array) -> Array:
  """Shannon entropy of softmax(logits).

  Args:
    logits: [..., V] any float type; -inf for ids that cannot be.

  Returns:
    [...] float32, bits, in [0, log2 V].
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  # 0 log 0 is 0.
  terms = jnp.where(jnp.isneginf(log_p), 0.0, jnp.exp(log_p) * log_p)
  return -jnp.sum(terms, axis=-1) * BITS_PER_NAT


def surprisal_bits(logits: Array, ids: Array) -> Array:
  """-log2 softmax(logits)[ids], [...] float32, from [..., V] logits."""
  logits = logits.astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  return (jax.nn.logsumexp(logits, axis=-1) - chosen) * BITS_PER_NAT


def _rank(logits: Array) -> Array:
  """How many ids are more likely, [..., V] int32."""
  order = jnp.argsort(-logits, axis=-1, stable=True)
  return jnp.argsort(order, axis=-1)


def _is_in_nucleus(logits: Array, top_p: float) -> Array:
  order = jnp.argsort(-logits, axis=-1, stable=True)
  p = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1))
  total = jnp.cumsum(p, axis=-1)
  # An id stays if those before it do not reach beyond top_p yet.
  before = jnp.pad(total, [(0, 0)] * (p.ndim - 1) + [(1, 0)])[..., :-1]
  is_kept = before <= top_p
  return jnp.take_along_axis(is_kept, jnp.argsort(order, axis=-1), axis=-1)


def _keep(logits: Array, is_kept: Array) -> Array:
  return jnp.where(is_kept, logits, -jnp.inf)


def _require(ok: bool, name: str, value: float, allowed: str) -> None:
  if not ok:
    raise ValueError(f'{name}: got {value!r}, allowed: {allowed}')
