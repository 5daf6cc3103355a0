"""Metrics of levels, of a pyramid and of its top LM, as sums and counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from optax.losses import squared_error

from abstractinator.model.compressor import CompressorOutput
from abstractinator.model.level import LevelOutput
from abstractinator.model.pyramid import PyramidOutput
from abstractinator.model.quantizers import QuantizerOutput
from abstractinator.model.top_lm import CodeSequence, CodeSequenceOutput
from abstractinator.objective import losses
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.losses import Terms
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import NUM_BYTES, Array, Batch, Mean

Metrics = ByLevel[Mean]
Summary = ByLevel[float]

# Above this number of codes, histograms are of the digits of each stage alone:
# every step sends its histograms to the host.
MAX_COUNTED_CODES = 65536


def count(mask: Array) -> Array:
  """Returns how many entries of a mask are true, [] float32."""
  return jnp.sum(mask, dtype=jnp.float32)


def level_metrics(
  output: LevelOutput,
  batch: Batch,
  terms: dict[str, Array],
  stage_sizes: tuple[int, ...],
  num_bytes: Array,
  vocab_size: int | None,
) -> dict[str, Mean]:
  """Computes the metrics of a level.

  Args:
    output: Output of the level.
    batch: Ids that the level was given.
    terms: Terms of the level, from `losses.level_terms`.
    stage_sizes: Number of values of each digit of a code.
    num_bytes: Number of bytes that the batch stands for, [] float32. Bits are
      per byte at every level, so that those of all levels add up.
    vocab_size: Number of ordinary ids of the first level; None for a level
      above it, whose ids are codes.

  Returns:
    Means by name. `teacher_forced_byte_accuracy`, or for codes
    `teacher_forced_code_accuracy`, is the fraction of ids that are predicted
    right. `code_counts` is the histogram of codes, with count 1, if there are
    at most `MAX_COUNTED_CODES` of them; codes of several stages have a
    histogram for each, `stage0/code_counts` and so on.
    `gaussian_bits_per_dimension` is there with a Gaussian head only.
  """
  compressed, expanded = output.compressed, output.expanded
  if vocab_size is None:
    is_counted_BS, unit = batch.document_BS >= 0, 'code'
  else:
    is_counted_BS, unit = losses.is_byte(batch, vocab_size), 'byte'
  num_ids = losses.num_ids(batch)
  num_segments = jnp.sum(compressed.segments.count_B, dtype=jnp.float32)
  is_right_BS = expanded.best_BS == batch.ids_BS
  found = {
    f'{name}_bits_per_byte': Mean(terms[name] * BITS_PER_NAT, num_bytes)
    for name in ('entropy_model', 'expander', 'end')
  }
  if compressed.gaussian_nats_BS is not None:
    found['gaussian_bits_per_dimension'] = Mean(
      terms['gaussian'] * BITS_PER_NAT, num_ids
    )
  return found | {
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
) -> dict[str, Mean]:
  """Counts codes and the digits of each stage; see `level_metrics`."""

  def counts(codes_BU: Array, size: int) -> Mean:
    codes_BU = jnp.where(compressed.is_code_BU, codes_BU, size)
    hits = jnp.zeros((size,)).at[codes_BU].add(1.0, mode='drop')
    return Mean(hits, jnp.ones(()))

  found = {}
  quantized, num_codes = compressed.quantized, math.prod(stage_sizes)
  if num_codes <= MAX_COUNTED_CODES:
    found['code_counts'] = counts(quantized.codes_BP, num_codes)
  if len(stage_sizes) > 1:
    for stage, size in enumerate(stage_sizes):
      digits_BP = quantized.digits_BPM[..., stage]
      found[f'stage{stage}/code_counts'] = counts(digits_BP, size)
  return found


def discrete_metrics(
  output: CodeSequenceOutput,
  sequence: CodeSequence,
  terms: dict[str, Array],
) -> dict[str, Mean]:
  """Computes the metrics of a discrete top LM.

  Args:
    output: Output of the top LM.
    sequence: Codes that the top LM was given.
    terms: Terms of the top LM, from `losses.top_lm_terms`.

  Returns:
    Means over codes by name. A code counts as right if the most likely digit
    of every stage is the true one, which is when greedy decoding, digit by
    digit, finds the code. The margin is the logit of the true digit of stage 0
    minus that of the best other digit, nats. Names ending in `_last` are over
    the last code of each document, or the last one in its row.
  """
  digits = losses.scored_digits(output, sequence.codes_BP)
  is_right_BPM = jnp.stack(
    [jnp.argmax(logits, axis=-1) == digit for logits, digit in digits], axis=-1
  )
  scores_BPK, digit_BP = digits[0]
  is_true_BPK = jnp.arange(scores_BPK.shape[-1]) == digit_BP[..., None]
  other_BP = jnp.max(jnp.where(is_true_BPK, -jnp.inf, scores_BPK), axis=-1)
  margin_BP = _chosen(scores_BPK, digit_BP) - other_BP
  is_valid_BP = sequence.document_BP >= 0
  return {
    'top_lm_code_bits_per_code': Mean(
      terms['top_lm_code'] * BITS_PER_NAT, count(is_valid_BP)
    ),
    **_common_metrics(output, sequence, terms, jnp.all(is_right_BPM, axis=-1)),
    **_top_accuracies(scores_BPK, digit_BP, sequence),
    # The margin is infinite where no other digit is allowed.
    'top_lm_margin_nats': _mean(margin_BP, is_valid_BP & (other_BP > -jnp.inf)),
  }


def continuous_metrics(
  output: CodeSequenceOutput,
  sequence: CodeSequence,
  terms: dict[str, Array],
  quantized: QuantizerOutput,
  scores_BPK: Array | None,
) -> dict[str, Mean]:
  """Computes the metrics of a continuous top LM.

  Args:
    output: Output of the top LM.
    sequence: Codes that the top LM was given.
    terms: Terms of the top LM, from `losses.top_lm_terms`.
    quantized: Codes of the predicted vectors, from a `read_only` quantizer.
    scores_BPK: Scores of the codebook entries of stage 0, higher for nearer
      entries, [B, P, K] float32; None for a quantizer without a codebook.

  Returns:
    Means over codes by name. A center is the vector of a code. A code counts as
    right if its center is the nearest one to the predicted vector; the `stage0`
    metrics compare digits of stage 0 and need `scores_BPK`.
    `top_lm_mse_to_target_center` is the squared distance to the true center,
    mean over D; `top_lm_margin` is how much farther the true center is than the
    nearest one, squared distances summed over D. Names ending in `_last` are
    as in `discrete_metrics`.
  """
  predicted_BPD = output.vectors_BPD
  assert predicted_BPD is not None, 'a discrete top LM predicts no vectors'
  true_BP, nearest_BP = (
    jnp.sum(squared_error(predicted_BPD, x.astype(jnp.float32)), axis=-1)
    for x in (sequence.vectors_BPD, quantized.vectors_BPD)
  )
  is_valid_BP = sequence.document_BP >= 0
  is_right_BP = quantized.codes_BP == sequence.codes_BP
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
      terms['top_lm_vector'], count(is_valid_BP)
    ),
    'top_lm_margin': _mean(true_BP - nearest_BP, is_valid_BP),
    **_common_metrics(output, sequence, terms, is_right_BP),
  }


def _common_metrics(
  output: CodeSequenceOutput,
  sequence: CodeSequence,
  terms: dict[str, Array],
  is_right_BP: Array,
) -> dict[str, Mean]:
  """Computes the metrics that top LMs of both modes have."""
  is_valid_BP = sequence.document_BP >= 0
  end_is_right_BP = (output.end_logits_BP > 0) == sequence.is_end_BP
  return {
    'top_lm_code_accuracy': _mean(is_right_BP, is_valid_BP),
    'top_lm_code_accuracy_last': _mean(is_right_BP, _is_last(sequence)),
    'top_lm_end_accuracy': _mean(end_is_right_BP, is_valid_BP),
    'top_lm_end_bits_per_code': Mean(
      terms['top_lm_end'] * BITS_PER_NAT, count(is_valid_BP)
    ),
  }


def _top_accuracies(
  scores_BPK: Array, digit_BP: Array, sequence: CodeSequence
) -> dict[str, Mean]:
  """Computes how often the true digit is among the 5 and the 10 best ones.

  Among digits of equal scores the lower one counts as better.
  """
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


def _is_last(sequence: CodeSequence) -> Array:
  """Returns the last slot of each document in its row, [B, P] bool."""
  document_BP = sequence.document_BP
  pad = ((0, 0), (0, 1))
  following_BP = jnp.pad(document_BP, pad, constant_values=-1)[:, 1:]
  return (document_BP >= 0) & (document_BP != following_BP)


def _chosen(scores_BPK: Array, digit_BP: Array) -> Array:
  return jnp.take_along_axis(scores_BPK, digit_BP[..., None], axis=-1)[..., 0]


def _mean(x: Array, mask: Array) -> Mean:
  return Mean(jnp.sum(x, where=mask, dtype=jnp.float32), count(mask))


def pyramid_metrics(
  output: PyramidOutput,
  terms: Terms,
  stage_sizes: list[tuple[int, ...]],
  nearest: tuple[QuantizerOutput, Array | None] | None,
  vocab_size: int = NUM_BYTES,
) -> Metrics:
  """Computes the metrics of all levels and of the top LM.

  Args:
    output: Output of the pyramid.
    terms: Terms of the pyramid, from `losses.pyramid_terms`.
    stage_sizes: Number of values of each digit of a code, for each level.
    nearest: Codes of the vectors that a continuous top LM predicts, from
      `Pyramid.nearest_codes`; None without one.
    vocab_size: Number of ordinary ids of the first level.

  Returns:
    `level_metrics` of each level; `discrete_metrics` or `continuous_metrics` of
    the top LM. With a discrete top LM also `total_bits_per_byte`, an upper
    bound on what the text costs: the codes of the top and the ends of documents
    under the top LM, and the ids of every level given the codes above them and
    the ends of their segments. Its parts that are no metrics of a level are
    `top_lm_code_bits_per_byte` and `top_lm_end_bits_per_byte`.
  """
  num_bytes = count(losses.is_byte(output.batches[0], vocab_size))
  levels = tuple(
    level_metrics(*of_level, num_bytes, None if number else vocab_size)
    for number, of_level in enumerate(
      zip(output.levels, output.batches, terms.levels, stage_sizes, strict=True)
    )
  )
  if output.top_lm is None:
    return ByLevel(levels)

  def per_byte(nats: Array) -> Mean:
    return Mean(nats * BITS_PER_NAT, num_bytes)

  whole = {}
  if output.top_lm_expanded is not None:
    nats = terms.whole['top_lm_expander']
    whole['top_lm_expander_bits_per_byte'] = per_byte(nats)
  if nearest is not None:
    whole |= continuous_metrics(
      output.top_lm, output.top_codes, terms.whole, *nearest
    )
    return ByLevel(levels, whole)
  whole |= discrete_metrics(output.top_lm, output.top_codes, terms.whole)
  total = jnp.zeros(())
  for name in ('top_lm_code', 'top_lm_end'):
    whole[f'{name}_bits_per_byte'] = per_byte(terms.whole[name])
    total += terms.whole[name]
  for of_level in terms.levels:
    total = total + of_level['expander'] + of_level['end']
  whole['total_bits_per_byte'] = per_byte(total)
  return ByLevel(levels, whole)


def histograms(metrics: Metrics) -> ByLevel[np.ndarray]:
  """Returns how often each code, or each digit of a stage, was used.

  Args:
    metrics: Metrics on the host.

  Returns:
    Counts by name: `code_usage`, `stage0/code_usage` and so on.
  """
  return metrics.apply(
    lambda of_level: {
      f'{name.removesuffix("code_counts")}code_usage': np.asarray(mean.total)
      for name, mean in of_level.items()
      if name.endswith('code_counts')
    }
  )


def merge(a: Metrics | None, b: Metrics) -> Metrics:
  """Returns the metrics of two batches together; None has no batch."""
  return b if a is None else jax.tree.map(lambda x, y: x + y, a, b)


def num_bytes(metrics: Metrics) -> float:
  """Returns the number of bytes that metrics on the host are about.

  It is 0 for the objective `top_lm`, whose codes do not say how many bytes they
  stand for.
  """
  if not metrics.levels:
    return 0.0
  return float(metrics.levels[0]['entropy_model_bits_per_byte'].count)


def summarize(metrics: Metrics) -> Summary:
  """Divides sums by counts, on the host.

  Args:
    metrics: Metrics on the host.

  Returns:
    The figures of `summarize_level`, and those of `price_of_codes` if the run
    has a total.
  """
  found = metrics.apply(summarize_level)
  total = found.whole.get('total_bits_per_byte')
  if total is None or not found.levels:
    return found
  codes = sum(
    found.whole[f'top_lm_{part}_bits_per_byte'] for part in ('code', 'end')
  )
  flat = found.levels[0]['entropy_model_bits_per_byte']
  return ByLevel(found.levels, found.whole | price_of_codes(flat, total, codes))


def price_of_codes(flat: float, total: float, codes: float) -> dict[str, float]:
  """Compares what codes cost with what they save.

  Args:
    flat: Cost of the bytes under the entropy model of the first level, which
      uses no codes, bits/byte.
    total: Cost of codes, of bytes given codes, and of ends, bits/byte.
    codes: Cost of the codes alone, bits/byte.

  Returns:
    total_over_flat: total / flat.
    code_efficiency: Savings of codes in the cost of bytes and ends, over the
      cost of the codes: (flat - (total - codes)) / codes. Below 1 the total is
      above that of the flat model.

  Source: the efficiency of discrete latents of Kaiser and Bengio,
    arXiv:1801.09797, section 2.
  """
  return {
    'total_over_flat': total / max(flat, 1e-9),
    'code_efficiency': (flat - (total - codes)) / max(codes, 1e-9),
  }


def summarize_level(metrics: dict[str, Mean]) -> dict[str, float]:
  """Divides the sums of a level, or of the whole pyramid, by their counts.

  Args:
    metrics: Metrics on the host, by name.

  Returns:
    Numbers by name. A histogram of codes is replaced by
    `live_code_fraction`, the fraction of codes used at least once, and
    `codebook_perplexity`, of all codes and of each stage. From the histograms
    of a level follows `code_unigram_bits_per_byte`: what its codes cost under
    their own frequencies, or under those of their digits if the codes are too
    many to be counted.
  """
  values, bits = {}, {}
  for name, mean in metrics.items():
    if name.endswith('code_counts'):
      stage = name.removesuffix('code_counts')
      code_bits, live_fraction = code_statistics(np.asarray(mean.total))
      values[f'{stage}live_code_fraction'] = live_fraction
      values[f'{stage}codebook_perplexity'] = 2.0**code_bits
      bits[stage] = code_bits * float(np.sum(mean.total))
    else:
      values[name] = float(mean.total) / max(float(mean.count), 1e-9)
  if bits and 'bytes_per_segment' in values:
    total_bits = bits[''] if '' in bits else sum(bits.values())
    num_bytes = float(metrics['bytes_per_segment'].total)
    values['code_unigram_bits_per_byte'] = total_bits / max(num_bytes, 1e-9)
  return values


def code_statistics(counts: np.ndarray) -> tuple[float, float]:
  """Returns the entropy of a histogram, bits, and the fraction above 0."""
  counts = np.asarray(counts, np.float64)
  p = counts[counts > 0] / max(counts.sum(), 1.0)
  return float(-np.sum(p * np.log2(p))), float(np.mean(counts > 0))
