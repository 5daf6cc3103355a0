"""What is measured: sums and counts on the device, divisions on the host."""

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator import losses
from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.modules.abstractinator import LevelOutput
from abstractinator.types import Array, Batch, Mean

_NATS_PER_BIT = 0.6931471805599453

Metrics = dict[str, Mean]


def level_metrics(
  output: LevelOutput, batch: Batch, terms: dict[str, Array], num_codes: int
) -> Metrics:
  """Metrics of a level over bytes.

  Args:
    output: Of the level.
    batch: What it was given.
    terms: From `losses.terms`.
    num_codes: K.

  Returns:
    Means by name. `code_counts` is the histogram of codes, [K], with count 1.
    `gaussian_bits_per_dimension` is there with a Gaussian head only.
  """
  compressed, expanded = output.compressed, output.expanded
  is_byte_BS = (batch.document_BS >= 0) & (batch.ids_BS < NUM_BYTES)
  num_bytes = jnp.sum(is_byte_BS, dtype=jnp.float32)
  num_ids = losses.num_ids(batch)
  num_segments = jnp.sum(compressed.segments.count_B, dtype=jnp.float32)
  is_right_BS = jnp.argmax(expanded.logits_BSV, axis=-1) == batch.ids_BS
  codes_BP = jnp.where(
    compressed.is_valid_BP, compressed.quantized.codes_BP, num_codes
  )
  code_counts = jnp.zeros((num_codes,)).at[codes_BP].add(1.0, mode='drop')

  def count(mask):
    return jnp.sum(mask, dtype=jnp.float32)

  def bits_per_byte(name):
    return Mean(terms[name] / _NATS_PER_BIT, num_bytes)

  found = {}
  if compressed.gaussian_nats_BS is not None:
    found['gaussian_bits_per_dimension'] = Mean(
      terms['gaussian'] / _NATS_PER_BIT, num_ids
    )
  return found | {
    'entropy_model_bits_per_byte': bits_per_byte('entropy_model'),
    'expander_bits_per_byte': bits_per_byte('expander'),
    'end_bits_per_byte': bits_per_byte('end'),
    'commitment': Mean(terms['commitment'], num_segments),
    'teacher_forced_byte_accuracy': Mean(
      count(is_right_BS & is_byte_BS), num_bytes
    ),
    'bytes_per_segment': Mean(num_bytes, num_segments),
    'overflow_fraction': Mean(
      count(compressed.segments.is_capacity_bound_BS), num_ids
    ),
    'code_counts': Mean(code_counts, jnp.ones(())),
  }


def merge(a: Metrics | None, b: Metrics) -> Metrics:
  """Metrics of two batches together."""
  return b if a is None else jax.tree.map(lambda x, y: x + y, a, b)


def summarize(metrics: Metrics) -> dict[str, float]:
  """Divides, on the host.

  Args:
    metrics: Fetched metrics, numpy.

  Returns:
    A number by name; what is derived from the histogram of codes takes its
    place: the fraction of codes hit at least once, the perplexity of the
    codebook, and what the codes cost under their own frequencies.
  """
  values = {}
  for name, mean in metrics.items():
    if name != 'code_counts':
      values[name] = float(mean.total) / max(float(mean.count), 1e-9)
  if 'code_counts' in metrics:
    counts = np.asarray(metrics['code_counts'].total, np.float64)
    p = counts[counts > 0] / max(counts.sum(), 1.0)
    bits = float(-np.sum(p * np.log2(p)))
    values['live_code_fraction'] = float(np.mean(counts > 0))
    values['codebook_perplexity'] = 2.0**bits
    if 'bytes_per_segment' in values:
      values['code_unigram_bits_per_byte'] = bits / max(
        values['bytes_per_segment'], 1e-9
      )
  return values
