"""Logits of the digits of a code, one stage after the other."""

from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
from jax import lax

from abstractinator.ops.sampling import likeliest
from abstractinator.types import Array


@flax.struct.dataclass
class StageLogits:
  """Predictions of the digits of codes.

  Attributes:
    logits: Logits of each stage, M arrays [..., K] float32.
    digits_M: Chosen digit of each stage, by default the best, [..., M] int32.
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
  """Scores every codebook entry of every stage against a prediction.

  Args:
    h_C: Predictions in the space of the codes, [..., C].
    codebooks: Entries of each stage, M arrays [K, C] float32.
    digits_M: True digits on which later stages are conditioned, [..., M] int32;
      None to condition them on the chosen digits.
    residual_conditioning: True if a stage scores the residual: the prediction
      less the entries of the digits before. Else it scores the prediction.
    distance: Kind of score: 'dot' for inner products, 'squared' for negative
      squared distances.
    allowed_K: True for digits of stage 0 that may be chosen, [K] bool; None for
      all.
    choose: Function from the number of a stage and its logits [..., K], -inf
      where not allowed, to digits [...] int32; None for the best digits.

  Returns:
    Logits and chosen digits. No gradient passes through the entries that are
    subtracted.

  Raises:
    ValueError: If the distance is unknown.
  """
  if distance not in _SCORES:
    raise ValueError(
      f'distance: got {distance!r}, allowed: {", ".join(_SCORES)}'
    )
  rest_C = h_C.astype(jnp.float32)
  logits: list[Array] = []
  chosen: list[Array] = []
  for stage, codebook_KC in enumerate(codebooks):
    logits.append(_SCORES[distance](rest_C, codebook_KC))
    choice_K = logits[-1]
    if stage == 0 and allowed_K is not None:
      choice_K = jnp.where(allowed_K, choice_K, -jnp.inf)
    if choose is None:
      chosen.append(likeliest(choice_K))
    else:
      chosen.append(choose(stage, choice_K))
    if residual_conditioning:
      digit = chosen[-1] if digits_M is None else digits_M[..., stage]
      rest_C = rest_C - lax.stop_gradient(codebook_KC[digit])
  return StageLogits(tuple(logits), jnp.stack(chosen, axis=-1))


def _dot(x_C: Array, codebook_KC: Array) -> Array:
  return jnp.einsum('...c,kc->...k', x_C, codebook_KC, precision='highest')


def _negative_squared_distance(x_C: Array, codebook_KC: Array) -> Array:
  norm = jnp.sum(jnp.square(x_C), axis=-1, keepdims=True)
  norm_K = jnp.sum(jnp.square(codebook_KC), axis=-1)
  return 2 * _dot(x_C, codebook_KC) - norm - norm_K


_SCORES = {'dot': _dot, 'squared': _negative_squared_distance}
