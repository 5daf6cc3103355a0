"""What is measured of a pyramid: sums and counts, as in `metrics`."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.model.compressor import CompressorOutput
from abstractinator.model.level import LevelOutput
from abstractinator.model.pyramid import PyramidOutput
from abstractinator.model.quantizers import QuantizerOutput
from abstractinator.model.top_lm import CodeSequence, CodeSequenceOutput
from abstractinator.objective import losses
from abstractinator.objective.losses import prefixes
from abstractinator.ops import digits as digits_lib
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import NUM_BYTES, Array, Batch, Mean

# Of a histogram that every step sends to the host.
_MAX_COUNTED_CODES = 65536
# See `pyramid_losses.prefixes`.
_LEVEL = re.compile(r'(level\d+/)?')

Metrics = dict[str, Mean]


def level_metrics(
  output: LevelOutput,
  batch: Batch,
  terms: dict[str, Array],
  stage_sizes: tuple[int, ...],
  num_bytes: Array | None = None,
  vocab_size: int = NUM_BYTES,
) -> Metrics:
  """Metrics of a level.

  Args:
    output: Of the level.
    batch: What it was given.
    terms: From `losses.terms`.
    stage_sizes: Values of each digit of a code.
    num_bytes: Bytes that the codes of the batch stand for; None for a batch of
      bytes. Bits are per byte at every level, so that they add up.
    vocab_size: Of the first level, whose ids need not be bytes: what is called
      a byte in names of metrics is one of them.

  Returns:
    Means by name. How many ids are right is `teacher_forced_byte_accuracy`,
    where they are codes `teacher_forced_code_accuracy`. `code_counts` is the
    histogram of codes, with count 1, if there are at most 65536 of them; codes
    of several stages have one for each, `stage0/code_counts` and so on.
    `gaussian_bits_per_dimension` is there with a Gaussian head only.
  """
  compressed, expanded = output.compressed, output.expanded
  is_counted_BS, unit = batch.document_BS >= 0, 'code'
  if num_bytes is None:
    is_counted_BS, unit = is_counted_BS & (batch.ids_BS < vocab_size), 'byte'
    num_bytes = jnp.sum(is_counted_BS, dtype=jnp.float32)
  num_ids = losses.num_ids(batch)
  num_segments = jnp.sum(compressed.segments.count_B, dtype=jnp.float32)
  is_right_BS = expanded.best_BS == batch.ids_BS

  def count(mask):
    return jnp.sum(mask, dtype=jnp.float32)

  def bits_per_byte(name):
    return Mean(terms[name] * BITS_PER_NAT, num_bytes)

  found = {}
  if compressed.gaussian_nats_BS is not None:
    found['gaussian_bits_per_dimension'] = Mean(
      terms['gaussian'] * BITS_PER_NAT, num_ids
    )
  return found | {
    'entropy_model_bits_per_byte': bits_per_byte('entropy_model'),
    'expander_bits_per_byte': bits_per_byte('expander'),
    'end_bits_per_byte': bits_per_byte('end'),
    'commitment': Mean(terms['commitment'], count(compressed.is_code_BU)),
    f'teacher_forced_{unit}_accuracy': Mean(
      count(is_right_BS & is_counted_BS), count(is_counted_BS)
    ),
    'bytes_per_segment': Mean(num_bytes, num_segments),
    'overflow_fraction': Mean(
      count(compressed.segments.is_capacity_bound_BS), num_ids
    ),
    **_code_counts(compressed, stage_sizes),
  }


def _code_counts(
  compressed: CompressorOutput, stage_sizes: tuple[int, ...]
) -> Metrics:
  def counts(codes_BU, size):
    codes_BU = jnp.where(compressed.is_code_BU, codes_BU, size)
    hits = jnp.zeros((size,)).at[codes_BU].add(1.0, mode='drop')
    return Mean(hits, jnp.ones(()))

  found = {}
  quantized, num_codes = compressed.quantized, math.prod(stage_sizes)
  if num_codes <= _MAX_COUNTED_CODES:
    found['code_counts'] = counts(quantized.codes_BP, num_codes)
  if len(stage_sizes) > 1:
    for stage, size in enumerate(stage_sizes):
      digits_BP = quantized.digits_BPM[..., stage]
      found[f'stage{stage}/code_counts'] = counts(digits_BP, size)
  return found


def histograms(metrics: Metrics) -> dict[str, np.ndarray]:
  """How often each code, or digit of a stage, was used.

  Args:
    metrics: Fetched metrics, numpy.

  Returns:
    Counts by name: `code_usage`, `stage0/code_usage` and so on.
  """
  return {
    f'{name.removesuffix("code_counts")}code_usage': mean.total
    for name, mean in metrics.items()
    if name.endswith('code_counts')
  }


def merge(a: Metrics | None, b: Metrics) -> Metrics:
  """Metrics of two batches together."""
  return b if a is None else jax.tree.map(lambda x, y: x + y, a, b)


def summarize(metrics: Metrics) -> dict[str, float]:
  """Divides, on the host.

  Args:
    metrics: Fetched metrics, numpy.

  Returns:
    A number by name; what is derived from a histogram of codes takes its
    place: the fraction of codes hit at least once and the perplexity, for all
    of the codes and for each stage; and what all codes of a level cost under
    their own frequencies, those of the digits where codes are too many to be
    counted.
  """
  by_level = {}
  for name, mean in metrics.items():
    prefix = _LEVEL.match(name)[0]
    by_level.setdefault(prefix, {})[name.removeprefix(prefix)] = mean
  return {
    prefix + name: value
    for prefix, of_level in by_level.items()
    for name, value in _summarize_level(of_level).items()
  }


def num_bytes(metrics: Metrics) -> float:
  """Bytes that fetched metrics are about; 0 of codes that say no number."""
  # Of the first level, whose bits are per byte in every objective.
  name = 'entropy_model_bits_per_byte'
  counts = [mean.count for key, mean in metrics.items() if key.endswith(name)]
  return float(counts[0]) if counts else 0.0


def _summarize_level(metrics: Metrics) -> dict[str, float]:
  values, bits = {}, {}
  for name, mean in metrics.items():
    if name.endswith('code_counts'):
      prefix = name.removesuffix('code_counts')
      code_bits, live_fraction = _code_statistics(mean.total)
      values[f'{prefix}live_code_fraction'] = live_fraction
      values[f'{prefix}codebook_perplexity'] = 2.0**code_bits
      bits[prefix] = code_bits * float(np.sum(mean.total))
    else:
      values[name] = float(mean.total) / max(float(mean.count), 1e-9)
  if bits and 'bytes_per_segment' in values:
    total_bits = bits[''] if '' in bits else sum(bits.values())
    values['code_unigram_bits_per_byte'] = total_bits / max(
      num_bytes(metrics), 1e-9
    )
  return values


def _code_statistics(counts: np.ndarray) -> tuple[float, float]:
  """Entropy of a histogram, bits, and the fraction of it that is not 0."""
  counts = np.asarray(counts, np.float64)
  p = counts[counts > 0] / max(counts.sum(), 1.0)
  return float(-np.sum(p * np.log2(p))), float(np.mean(counts > 0))


def discrete_metrics(
  output: CodeSequenceOutput,
  sequence: CodeSequence,
  terms: dict[str, Array],
) -> Metrics:
  """Metrics of a discrete top LM.

  Args:
    output: Of the top LM.
    sequence: What it was given.
    terms: From `top_lm_losses.terms`.

  Returns:
    Means over codes by name. A code counts as right if the most likely digit
    of every stage is, which is when choosing them one by one finds it. The
    margin is the lead of the true digit of stage 0 over the best other one,
    nats. Names ending in `_last` are over the last codes of documents, or of
    what a row has of them.
  """
  sizes = tuple(logits.shape[-1] for logits in output.logits)
  digits_BPM = digits_lib.decompose(sequence.codes_BP, sizes)
  is_right_BP = jnp.all(
    jnp.stack(
      [
        jnp.argmax(logits_BPK, axis=-1) == digits_BPM[..., stage]
        for stage, logits_BPK in enumerate(output.logits)
      ]
    ),
    axis=0,
  )
  scores_BPK, digit_BP = output.logits[0], digits_BPM[..., 0]
  is_true_BPK = jnp.arange(sizes[0]) == digit_BP[..., None]
  other_BP = jnp.max(jnp.where(is_true_BPK, -jnp.inf, scores_BPK), axis=-1)
  margin_BP = _chosen(scores_BPK, digit_BP) - other_BP
  is_valid_BP = sequence.document_BP >= 0
  return {
    'top_lm_code_bits_per_code': Mean(
      terms['top_lm_code'] * BITS_PER_NAT, _count(is_valid_BP)
    ),
    **_accuracies(is_right_BP, sequence),
    **_top_accuracies(scores_BPK, digit_BP, sequence),
    # Where there is another digit at all.
    'top_lm_margin_nats': _mean(margin_BP, is_valid_BP & (other_BP > -jnp.inf)),
    **_ends(output, sequence, terms),
  }


def continuous_metrics(
  output: CodeSequenceOutput,
  sequence: CodeSequence,
  terms: dict[str, Array],
  quantized: QuantizerOutput,
  scores_BPK: Array | None,
) -> Metrics:
  """Metrics of a continuous top LM.

  Args:
    output: Of the top LM.
    sequence: What it was given.
    terms: From `top_lm_losses.terms`.
    quantized: What a `read_only` quantizer makes of the predicted vectors.
    scores_BPK: [B, P, K] float32, higher for what is nearer, of the entries of
      stage 0; None for a quantizer without a codebook.

  Returns:
    Means over codes by name. The centers are the vectors of codes: which one is
    nearest (the whole code, and its digit of stage 0), how far the true one
    is, mean over D, and how much farther than the nearest, summed over D. As
    in `discrete_metrics`, `_last` is over the last codes of documents; what
    needs scores is there if they are.
  """
  is_valid_BP = sequence.document_BP >= 0
  true_BPD = sequence.vectors_BPD.astype(jnp.float32)
  nearest_BPD = quantized.vectors_BPD.astype(jnp.float32)

  def distance(center_BPD):
    return jnp.sum(jnp.square(output.vectors_BPD - center_BPD), axis=-1)

  margin_BP = distance(true_BPD) - distance(nearest_BPD)
  found = {}
  if scores_BPK is not None:
    digit_BP = sequence.codes_BP % scores_BPK.shape[-1]
    found = _top_accuracies(scores_BPK, digit_BP, sequence) | {
      'top_lm_center_agreement_stage0': _mean(
        quantized.digits_BPM[..., 0] == digit_BP, is_valid_BP
      )
    }
  return found | {
    'top_lm_mse_to_target_center': Mean(
      terms['top_lm_vector'], _count(is_valid_BP)
    ),
    'top_lm_margin': _mean(margin_BP, is_valid_BP),
    **_accuracies(quantized.codes_BP == sequence.codes_BP, sequence),
    **_ends(output, sequence, terms),
  }


def _accuracies(is_right_BP, sequence) -> Metrics:
  return {
    'top_lm_code_accuracy': _mean(is_right_BP, sequence.document_BP >= 0),
    'top_lm_code_accuracy_last': _mean(is_right_BP, _is_last(sequence)),
  }


def _top_accuracies(scores_BPK, digit_BP, sequence) -> Metrics:
  """How often the true digit is among the best; the lower of equals first."""
  true_BP1 = _chosen(scores_BPK, digit_BP)[..., None]
  is_lower_BPK = jnp.arange(scores_BPK.shape[-1]) < digit_BP[..., None]
  is_before_BPK = scores_BPK > true_BP1
  is_before_BPK |= (scores_BPK == true_BP1) & is_lower_BPK
  rank_BP = jnp.sum(is_before_BPK, axis=-1)
  return {
    f'top_lm_top{k}_accuracy_stage0{name}': _mean(rank_BP < k, is_counted_BP)
    for k in (5, 10)
    for name, is_counted_BP in (
      ('', sequence.document_BP >= 0),
      ('_last', _is_last(sequence)),
    )
  }


def _ends(output, sequence, terms) -> Metrics:
  is_valid_BP = sequence.document_BP >= 0
  is_right_BP = (output.end_logits_BP > 0) == sequence.is_end_BP
  return {
    'top_lm_end_bits_per_code': Mean(
      terms['top_lm_end'] * BITS_PER_NAT, _count(is_valid_BP)
    ),
    'top_lm_end_accuracy': _mean(is_right_BP, is_valid_BP),
  }


def _is_last(sequence):
  """Last slot of each document in its row, [B, P] bool."""
  document_BP = sequence.document_BP
  following_BP = jnp.pad(document_BP, ((0, 0), (0, 1)), constant_values=-1)[
    :, 1:
  ]
  return (document_BP >= 0) & (document_BP != following_BP)


def _chosen(scores_BPK, digit_BP):
  return jnp.take_along_axis(scores_BPK, digit_BP[..., None], axis=-1)[..., 0]


def _count(mask):
  return jnp.sum(mask, dtype=jnp.float32)


def _mean(x, mask):
  return Mean(jnp.sum(jnp.where(mask, x, 0.0)), _count(mask))


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
    of_level = level_metrics(
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
    return found | continuous_metrics(
      output.top_lm, output.top_codes, terms, *nearest
    )
  found |= discrete_metrics(output.top_lm, output.top_codes, terms)
  parts = ['top_lm_code', 'top_lm_end']
  for name in parts:
    found[f'{name}_bits_per_byte'] = Mean(terms[name] * BITS_PER_NAT, num_bytes)
  parts += [prefix + name for prefix in names for name in ('expander', 'end')]
  total = sum(terms[name] for name in parts) * BITS_PER_NAT
  found['total_bits_per_byte'] = Mean(total, num_bytes)
  return found
