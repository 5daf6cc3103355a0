"""The probability of a code, one digit after the other."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from abstractinator.modules import layers
from abstractinator.types import Array


class CodeHead(nn.Module):
  """p(code | state), the product of p(digit | state, digits before it).

  Every stage is a softmax over its own digits, so that the probabilities of
  all codes that are not forbidden add up to 1. Stage 0 is linear in the state.
  A later one is told the digits before it by vectors added to the state, with
  a hidden layer behind: added to the scores alone, as residual conditioning
  does, a digit would say the same about the next one whatever the state.

  Attributes:
    stage_sizes: Values of each digit, M of them.
    forbidden: Digits of stage 0 that no code has.
    d_model: Y, width of the state.
    dtype: Compute type.

  Parameters:
    told_0/embedding: [K, Y] and so on, of the digits of all stages but the
      last.
    mix_1/kernel: [Y, Y] and so on, of all stages but the first.
    logits_0/kernel: [Y, K] and so on.
  """

  stage_sizes: tuple[int, ...]
  forbidden: tuple[int, ...]
  d_model: int
  dtype: jnp.dtype

  def setup(self):
    sizes, stages = self.stage_sizes, range(len(self.stage_sizes))
    self.told = [
      layers.embed(sizes[m], self.d_model, self.dtype, name=f'told_{m}')
      for m in stages[:-1]
    ]
    self.mix = [
      nn.Dense(self.d_model, use_bias=False, dtype=self.dtype, name=f'mix_{m}')
      for m in stages[1:]
    ]
    self.logits = [
      layers.logits(sizes[m], self.dtype, name=f'logits_{m}') for m in stages
    ]

  def __call__(self, x: Array, digits_M: Array) -> tuple[Array, ...]:
    """Scores of every digit, given the true ones before it.

    Args:
      x: [..., Y], states.
      digits_M: [..., M] int32, digits of the codes that follow.

    Returns:
      M arrays [..., K] float32, for a softmax each; -inf where forbidden.
    """
    return self._run(x, lambda m, _: digits_M[..., m])[0]

  def decode(self, x: Array, choose: Callable[[int, Array], Array]) -> Array:
    """Codes, each digit chosen in the light of those before it.

    Args:
      x: [..., Y], states.
      choose: From a stage and its logits [..., K] to digits [...] int32.

    Returns:
      [..., M] int32, digits.
    """
    return jnp.stack(self._run(x, choose)[1], axis=-1)

  def _run(self, x, choose):
    told, logits, digits = 0, [], []
    for m, head in enumerate(self.logits):
      y = nn.silu(self.mix[m - 1](x + told)) if m else x
      logits_K = head(y).astype(jnp.float32)
      if m == 0 and self.forbidden:
        logits_K = logits_K.at[..., jnp.array(self.forbidden)].set(-jnp.inf)
      logits.append(logits_K)
      digits.append(choose(m, logits_K))
      if m < len(self.told):
        told += self.told[m](digits[-1])
    return tuple(logits), digits
