"""What is measured of a pyramid: sums and counts, as in `metrics`."""

import jax.numpy as jnp

from abstractinator import losses, metrics, top_lm_metrics
from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.metrics import Metrics
from abstractinator.modules.pyramid_output import PyramidOutput
from abstractinator.modules.quantizer import QuantizerOutput
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.pyramid_losses import prefixes
from abstractinator.types import Array, Mean


def pyramid_metrics(
  output: PyramidOutput,
  terms: dict[str, Array],
  stage_sizes: list[tuple[int, ...]],
  nearest: tuple[QuantizerOutput, Array | None] | None,
  vocab_size: int = NUM_BYTES,
) -> Metrics:
  """Metrics of all levels and of the top LM.

  Args:
    output: Of the pyramid.
    terms: From `pyramid_losses.terms`.
    stage_sizes: Values of each digit of a code of each level.
    nearest: From `AbstractinatorPyramid.nearest_codes`, of what a continuous
      top LM predicts; None without one.
    vocab_size: See `metrics.level_metrics`.

  Returns:
    Those of `metrics.level_metrics` after the prefix of the level, and those of
    `top_lm_metrics`. With a discrete top LM `total_bits_per_byte`: what the
    codes of the top and the ends of documents cost under it, and the ids of
    every level given the codes above them, and the ends of their segments: an
    upper bound of what the text costs. With its parts, as far as they are no
    metrics of a level, `top_lm_code_bits_per_byte` and
    `top_lm_end_bits_per_byte`.
  """
  found = {}
  names = prefixes(len(output.levels))
  bytes_of = output.batches[0]
  num_bytes = jnp.sum(
    (bytes_of.document_BS >= 0) & (bytes_of.ids_BS < vocab_size),
    dtype=jnp.float32,
  )
  for number, (prefix, level, batch) in enumerate(
    zip(names, output.levels, output.batches, strict=True)
  ):
    of_level = metrics.level_metrics(
      level,
      batch,
      {name: terms[prefix + name] for name in losses.LEVEL_TERMS},
      stage_sizes[number],
      num_bytes if number else None,
      vocab_size,
    )
    found |= {prefix + name: mean for name, mean in of_level.items()}
  if output.top_lm is None:
    return found
  if output.top_lm_expanded is not None:
    found['top_lm_expander_bits_per_byte'] = Mean(
      terms['top_lm_expander'] * BITS_PER_NAT, num_bytes
    )
  if nearest is not None:
    return found | top_lm_metrics.continuous_metrics(
      output.top_lm, output.top_codes, terms, *nearest
    )
  found |= top_lm_metrics.discrete_metrics(
    output.top_lm, output.top_codes, terms
  )
  parts = ['top_lm_code', 'top_lm_end']
  for name in parts:
    found[f'{name}_bits_per_byte'] = Mean(terms[name] * BITS_PER_NAT, num_bytes)
  parts += [prefix + name for prefix in names for name in ('expander', 'end')]
  total = sum(terms[name] for name in parts) * BITS_PER_NAT
  found['total_bits_per_byte'] = Mean(total, num_bytes)
  return found
