"""Top codes chosen by what they cost, and the cost under all of them.

The quantizer takes the nearest entry. Any code of a segment can be decoded, and
another one may cost less: in bits of the code, of the ids given it, and of
ends.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from optax.losses import sigmoid_binary_cross_entropy

from abstractinator.config import ModelConfig
from abstractinator.model.expander import ExpanderOutput
from abstractinator.model.pyramid import Pyramid, PyramidCodes
from abstractinator.model.top_lm import CodeSequenceOutput
from abstractinator.objective import losses
from abstractinator.ops import digits as digits_lib
from abstractinator.types import Array, Batch, Segments


def unsupported(config: ModelConfig, num_candidates: int) -> str | None:
  """Returns which setting forbids a choice among candidates, or None."""
  level, top_lm = config.levels[-1], config.top_lm
  if top_lm is None or top_lm.mode != 'discrete':
    return "model.top_lm: got none that is 'discrete', which prices codes"
  if level.pooling.num_queries > 1:
    return f'pooling.num_queries: got {level.pooling.num_queries}, allowed: 1'
  if level.quantizer.kind == 'dictionary':
    return (
      "quantizer.kind: got 'dictionary', whose segments have one code each,"
      ' allowed: any other'
    )
  most = level.quantizer.stage_sizes[-1]
  if not 1 <= num_candidates <= most:
    return f'candidates: got {num_candidates}, allowed: 1 to {most}'
  return None


def is_independent(config: ModelConfig) -> bool:
  """Returns whether segments cost the same whatever the codes of others are."""
  return (
    len(config.levels) == 1
    and config.top_lm is not None
    and config.top_lm.inputs == 'segments'
    and config.levels[0].expander.context == 'segment'
    and config.levels[0].expander.lookback == 0
  )


def choose_codes(
  pyramid: Pyramid,
  batch: Batch,
  num_candidates: int,
  is_counted_BS: Array | None = None,
) -> tuple[PyramidCodes, CodeSequenceOutput | None, Array]:
  """Compresses rows, and takes the cheapest of several codes of each segment.

  Candidates are the nearest code and those with the next nearest last digits.
  Each is priced with the nearest codes of all other segments.

  Args:
    pyramid: A bound pyramid that `unsupported` does not name.
    batch: Rows of bytes.
    num_candidates: Number of candidates, k.
    is_counted_BS: True for the bytes whose cost counts, [B, S] bool; None for
      all. Ids of upper levels count in any case.

  Returns:
    Codes of all levels, those of the top level as chosen; the predictions of
    the top codes; and for each segment the cost of its ids, of its ends and of
    its code, summed over the candidates: -log sum over k of exp(-cost), which
    bits-back coding pays, [B, U] float32, nats. It is a bound on the cost of
    the text where `is_independent`.

  Source: for the sum, BB-ANS, arXiv:1901.04866.
  """
  codes = pyramid.compress_all(batch)
  top_lm = pyramid.predict_top(codes)
  number, top = len(codes.levels) - 1, codes.levels[-1]
  assert top_lm is not None, 'nothing prices the codes'
  quantizer = pyramid.levels[-1].compressor.quantizer
  sizes = quantizer.config.stage_sizes
  *_, p_BUK = quantizer.soft_digits(top.pooled_BUD, 1.0)
  _, last_BUC = lax.top_k(p_BUK, num_candidates)
  digits_BPM = top.quantized.digits_BPM
  codes_CBU = jnp.stack(
    [
      digits_lib.compose(digits_BPM.at[..., -1].set(last_BUC[..., c]), sizes)
      for c in range(num_candidates)
    ]
  )
  mask_BS = codes.batches[-1].document_BS >= 0
  if is_counted_BS is not None and number == 0:
    mask_BS &= is_counted_BS
  # All candidates form one batch: one expander to compile.
  many, predicted, mask_NS = jax.tree.map(
    lambda x: jnp.concatenate([x] * num_candidates), (codes, top_lm, mask_BS)
  )
  vectors_NUD = quantizer.lookup(codes_CBU.reshape(-1, codes_CBU.shape[2]))
  expanded = pyramid.expand(many, predicted, number, vectors_NUD)
  segments = many.levels[-1].segments
  cost_NU = _segment_nats(expanded, segments, mask_NS, codes_CBU.shape[2])
  cost_CBU = cost_NU.reshape(codes_CBU.shape) + jax.vmap(
    lambda codes_BU: losses.code_nats(top_lm, codes_BU)
  )(codes_CBU)
  best_BU = jnp.argmin(cost_CBU, axis=0)
  chosen_BU = jnp.take_along_axis(codes_CBU, best_BU[None], axis=0)[0]
  all_BU = -jax.nn.logsumexp(-cost_CBU, axis=0)
  codes = _with_codes(codes, chosen_BU, quantizer.lookup(chosen_BU), sizes)
  return codes, pyramid.predict_top(codes), all_BU


def _segment_nats(
  expanded: ExpanderOutput, segments: Segments, mask_NS: Array, slots: int
) -> Array:
  """Sums the costs of ids and ends over each segment, [N, U] float32."""
  nats_NS = expanded.nats_BS
  if expanded.end_logits_BS is not None:
    end_NS = sigmoid_binary_cross_entropy(
      expanded.end_logits_BS, segments.is_end_BS
    )
    nats_NS += jnp.where(expanded.end_is_certain_BS, 0.0, end_NS)
  index_NS = jnp.where(mask_NS, segments.index_BS, slots)
  return jax.vmap(
    lambda nats_S, index_S: jax.ops.segment_sum(nats_S, index_S, slots + 1)
  )(jnp.where(mask_NS, nats_NS, 0.0), index_NS)[:, :slots]


def _with_codes(
  codes: PyramidCodes,
  codes_BU: Array,
  vectors_BUD: Array,
  sizes: tuple[int, ...],
) -> PyramidCodes:
  """Returns codes of all levels with other codes of the top level."""
  top = codes.levels[-1]
  quantized = dataclasses.replace(
    top.quantized,
    codes_BP=codes_BU,
    digits_BPM=digits_lib.decompose(codes_BU, sizes),
    vectors_BPD=vectors_BUD,
  )
  return PyramidCodes(
    codes.batches,
    (*codes.levels[:-1], dataclasses.replace(top, quantized=quantized)),
    dataclasses.replace(
      codes.top_codes, codes_BP=codes_BU, vectors_BPD=vectors_BUD
    ),
  )
