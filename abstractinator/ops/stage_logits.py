"""Scores of the digits of a code, one stage after the other."""

from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.likeliest import likeliest
from abstractinator.types import Array


@flax.struct.dataclass
class StageLogits:
  """Predictions of the digits of codes.

  Attributes:
    logits: M arrays [..., K] float32, one a stage.
    digits_M: [..., M] int32, the best digit of each stage, or the chosen one.
  """

  logits: tuple[Array, ...]
  digits_M: Array


def stage_logits(
  h_C: Array,
  codebooks: tuple[Array, ...],
  digits_M: Array | None,
  *,
  residual_conditioning: bool,
  distance: str,
  allowed_K: Array | None = None,
  choose: Callable[[int, Array], Array] | None = None,
) -> StageLogits:
  """Scores every entry of every stage against a prediction.

  Args:
    h_C: [..., C], the prediction in the space of the codes.
    codebooks: M arrays [K, C] float32.
    digits_M: [..., M] int32, the digits each stage is told of those before it;
      None to go on from the best ones.
    residual_conditioning: Whether a stage scores what the digits before it
      leave of the prediction, or all of it.
    distance: 'dot', inner products; 'squared', negative squared distances.
    allowed_K: [K] bool, digits of stage 0 that may be the best; None for all.
    choose: From a stage and its logits [..., K], -inf where not allowed, to
      digits [...] int32; the best ones by default.

  Returns:
    Logits and best digits, float32. No gradient passes through what is
    subtracted.

  Raises:
    ValueError: If the distance is unknown.
  """
  if distance not in _SCORES:
    raise ValueError(
      f'distance: got {distance!r}, allowed: {", ".join(_SCORES)}'
    )
  rest_C = h_C.astype(jnp.float32)
  logits, best = [], []
  for stage, codebook_KC in enumerate(codebooks):
    logits.append(_SCORES[distance](rest_C, codebook_KC))
    choice_K = logits[-1]
    if stage == 0 and allowed_K is not None:
      choice_K = jnp.where(allowed_K, choice_K, -jnp.inf)
    if choose is None:
      best.append(likeliest(choice_K))
    else:
      best.append(choose(stage, choice_K))
    if residual_conditioning:
      digit = best[-1] if digits_M is None else digits_M[..., stage]
      rest_C = rest_C - lax.stop_gradient(codebook_KC[digit])
  return StageLogits(tuple(logits), jnp.stack(best, axis=-1))


def _dot(x_C: Array, codebook_KC: Array) -> Array:
  return jnp.einsum('...c,kc->...k', x_C, codebook_KC, precision='highest')


def _negative_squared_distance(x_C: Array, codebook_KC: Array) -> Array:
  norm = jnp.sum(jnp.square(x_C), axis=-1, keepdims=True)
  norm_K = jnp.sum(jnp.square(codebook_KC), axis=-1)
  return 2 * _dot(x_C, codebook_KC) - norm - norm_K


_SCORES = {'dot': _dot, 'squared': _negative_squared_distance}
