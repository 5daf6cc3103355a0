"""Whole levels against the original's numbers, alone and in pyramids.

Levels run from ids on, in the original's wiring: see `golden_levels`. Segments
are compared exactly, and parts after them are given the recorded ones.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.segmentation_test import divide_by_any
from tests.helpers import golden_quantizers
from tests.helpers.golden_levels import ENTROPY_BRANCH, LEARNED, levels
from tests.helpers.golden_parts import close, close_gradients

pytestmark = pytest.mark.usefixtures('rounded_tables')

# Absolute tolerances of values and of gradients.
VALUE, GRADIENT = 1e-4, 1e-3


def is_level(golden):
  return any('compressor.embedding.weight' in name for name in golden.arrays)


def is_quantized(golden):
  return is_level(golden) and any('vq_indices' in x for x in golden.arrays)


@pytest.mark.golden('*c1[34]_*', where=is_level)
def test_golden_entropies_and_segments(golden):
  """The ids of the second level are the codes of the first."""
  for level in levels(golden):
    is_real, want = level.is_real, level.compressed
    predicted, bits_BS, loss = jax.jit(level.entropy)(level.params)
    pairs = [(bits_BS, 'entropy_bits')]
    if predicted.mixture is not None:
      pairs.append((predicted.mixture.mean_JD[..., 0, :], 'entropy_mu'))
      log_variance = predicted.mixture.log_variance_JD[..., 0, :]
      pairs.append((log_variance, 'entropy_logvar'))
    for got, name in pairs:
      # The file of generation has segments only.
      if name in want:
        close(got[is_real], want[name][is_real], VALUE, name)
    thresholds = {'entropy_delta': level.config['c_entropy_delta']}
    if level.config['c_entropy_abs_threshold'] is not None:
      threshold = level.config['c_entropy_abs_threshold']
      thresholds['entropy_threshold'] = threshold
    index_BS = divide_by_any(bits_BS, thresholds)
    np.testing.assert_array_equal(index_BS[is_real], want['seg_id'][is_real])
    assert want['seg_id'].max() > 0
    if 'patch_end_mask' in want:
      is_end = np.diff(index_BS, axis=1, append=-1) != 0
      # Entropies of padding decide whether the id before it is a last one.
      told = is_real & np.pad(is_real, ((0, 0), (0, 1)), mode='edge')[:, 1:]
      np.testing.assert_array_equal(is_end[told], want['patch_end_mask'][told])
    if not level.losses:
      continue
    close(loss, level.losses['loss_entropy_ce'], VALUE, 'loss')
    num_segments = np.where(is_real, index_BS + 1, 0).max(1)
    num_slots = want['valid_mask'].shape[1]
    is_valid = np.arange(num_slots) < num_segments[:, None]
    np.testing.assert_array_equal(is_valid, want['valid_mask'])
    ratio = is_valid.sum(1) / is_real.sum(1)
    for got, name in (
      (is_valid.sum(1).mean(), 'segments_per_seq_mean'),
      (ratio.mean(), 'compression_ratio_mean'),
      (ratio.min(), 'compression_ratio_min'),
      (ratio.max(), 'compression_ratio_max'),
    ):
      np.testing.assert_allclose(got, level.losses[name], rtol=1e-5)


@pytest.mark.golden('*c1[34]_*', where=is_quantized)
def test_golden_vectors_and_codes(golden):
  for level in levels(golden):
    want, is_real = level.compressed, level.is_real
    is_valid = want['valid_mask']
    states, pooled, output = jax.jit(level.compress)(level.params)
    if 'hidden_states' in want:
      close(states[is_real], want['hidden_states'][is_real], VALUE, 'states')
      close(pooled, want['pre_vq_embeddings'], VALUE, 'pooled')
    codes, vectors = output.codes_BP, output.vectors_BPD
    if not level.config['c_use_standard_vq']:
      # In the original an empty slot has a padding code and zeros.
      codes = np.where(is_valid, codes, level.config['pad_id'])
      vectors = np.where(is_valid[..., None], vectors, 0)
    np.testing.assert_array_equal(codes, want['vq_indices'])
    close(vectors, want['vq_embeddings'], VALUE, 'vectors')
    if 'vq_loss' in want:
      close(level.vq_loss(output), want['vq_loss'], VALUE, 'loss')


@pytest.mark.golden('*c1[34]_*', where=is_quantized)
def test_golden_statistics_of_codes_after_a_step(golden):
  """Moving averages of each stage, and the original's perplexity of them."""
  for level in levels(golden):
    _, pooled, output = jax.jit(level.compress)(level.params)
    model, depth = level.quantizer
    of_stage = model.variables['vq']
    is_residual = not level.config['c_use_standard_vq']
    prefixes = [f'stages.{i}.' for i in range(depth)] if is_residual else ['']
    states = (
      [of_stage[f'stage{i}']['state'] for i in range(depth)]
      if is_residual
      else [of_stage['state']]
    )
    found = {'before': 1.0, 'after': 1.0}
    for prefix, state, (digit, got) in zip(
      prefixes,
      states,
      golden_quantizers.moved_stages(states, output.digits_BPM, pooled),
      strict=True,
    ):
      is_cold = not state.ema_count_K.any()
      stays = golden_quantizers.staying(state, digit, golden_quantizers.PAD)
      if level.after:
        golden_quantizers.assert_moved(
          got,
          level.after,
          prefix,
          stays if is_cold else None,
          only=('codebook', 'count', 'sum')
          if level.has_own_codebook
          else ('count', 'sum'),
        )
      forbidden = level.params[f'hi_quantizer.{prefix}forbidden_mask']
      unused = np.flatnonzero(forbidden).tolist()
      for when, counts in (('before', state), ('after', got)):
        found[when] *= golden_quantizers.perplexity(counts.ema_count_K, unused)
    for when, want in level.perplexity.items():
      np.testing.assert_allclose(found[when], want, rtol=2e-4, err_msg=when)


@pytest.mark.golden('*c1[34]_*', where=is_quantized)
def test_golden_losses_and_gradients(golden):
  """All losses of a level, or those of the entropy model without expander."""
  for level in levels(golden):
    losses, objective, names = level.losses, level.objective, LEARNED
    if not level.has_expander:
      objective = functools.partial(entropy_loss, level)
      names = ENTROPY_BRANCH
    learned = {k: x for k, x in level.params.items() if k.startswith(names)}
    if level.grads:
      objective = jax.value_and_grad(objective, has_aux=True)
    found = jax.jit(objective)(learned)
    (total, parts), grads = found if level.grads else (found, {})
    if level.has_expander:
      ce, logits_BSV = parts
      close(total, losses['loss_total'], VALUE, 'loss')
      close(ce, losses['loss_digit_ce'], VALUE, 'cross-entropy')
      if level.logits_BSV is not None:
        is_real = level.is_real
        close(logits_BSV[is_real], level.logits_BSV[is_real], VALUE, 'logits')
    if level.are_norms:
      grads = {k: jnp.linalg.norm(x.ravel()) for k, x in grads.items()}
    if level.grads:
      close_gradients(level.graded(grads), level.graded(level.grads), GRADIENT)


def entropy_loss(level, p):
  return level.entropy(p)[2], ()
