"""What is measured: sums and counts on the device, divisions on the host."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator import losses
from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.modules.abstractinator import LevelOutput
from abstractinator.modules.segment_compressor import CompressorOutput
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array, Batch, Mean

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
