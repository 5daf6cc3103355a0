"""The terms of all levels of a pyramid, and of its top LM."""

import jax.numpy as jnp

from abstractinator import losses, top_lm_losses
from abstractinator.modules.pyramid_output import PyramidOutput
from abstractinator.types import Array


def prefixes(num_levels: int) -> list[str]:
  """What stands before the names of each level, `level0/` and so on.

  Nothing, where there is one level only.
  """
  if num_levels == 1:
    return ['']
  return [f'level{number}/' for number in range(num_levels)]


def terms(output: PyramidOutput) -> dict[str, Array]:
  """Unweighted terms: sums, as in `losses.terms` and `top_lm_losses.terms`.

  Args:
    output: Of the pyramid.

  Returns:
    [] float32 each, those of a level after its prefix; those of the top LM are
    there if it is, and `top_lm_expander`, cross-entropy of the ids of the top
    level from predicted codes, nats, if it expands.
  """
  found = {
    prefix + name: total
    for prefix, level, batch in zip(
      prefixes(len(output.levels)), output.levels, output.batches, strict=True
    )
    for name, total in losses.terms(level, batch).items()
  }
  if output.top_lm is None:
    return found
  found |= top_lm_losses.terms(output.top_lm, output.top_codes)
  if output.top_lm_expanded is not None:
    is_valid_BS = output.batches[-1].document_BS >= 0
    found['top_lm_expander'] = jnp.sum(
      jnp.where(is_valid_BS, output.top_lm_expanded.nats_BS, 0.0)
    )
  return found
