"""Whole levels against the original's numbers, alone and in pyramids.

From ids on, in the original's wiring: see `golden_levels`. Only divisions are
taken as recorded by what comes after them, being compared exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden.segmentation_test import divide_by_any
from tests.helpers import golden_quantizers
from tests.helpers.golden_levels import ENTROPY_BRANCH, levels
from tests.helpers.golden_parts import close

pytestmark = pytest.mark.usefixtures('rounded_tables')

# Absolute, of values and of gradients.
VALUE, GRADIENT = 1e-4, 1e-3


def is_level(golden):
  return any('compressor.embedding.weight' in name for name in golden.arrays)


def is_quantized(golden):
  return is_level(golden) and any('vq_indices' in x for x in golden.arrays)


@pytest.mark.golden('*c1[34]_*', where=is_level)
def test_golden_entropies_and_segments(golden):
  """From ids; the second level's are the codes of the first."""
  for level in levels(golden):
    is_real, want = level.is_real, level.compressed
    predicted, bits_BS, loss = jax.jit(level.entropy)(level.params)
    pairs = [(bits_BS, 'entropy_bits')]
    if predicted.mixture is not None:
      pairs.append((predicted.mixture.mean_JD[..., 0, :], 'entropy_mu'))
      log_variance = predicted.mixture.log_variance_JD[..., 0, :]
      pairs.append((log_variance, 'entropy_logvar'))
    for got, name in pairs:
      # The file of generation has divisions alone.
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
      # An id before padding ends as the entropy of padding wills.
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
      # There an empty slot is a code of its own and a vector of zeros.
      codes = np.where(is_valid, codes, level.config['pad_id'])
      vectors = np.where(is_valid[..., None], vectors, 0)
    np.testing.assert_array_equal(codes, want['vq_indices'])
    close(vectors, want['vq_embeddings'], VALUE, 'vectors')
    if 'vq_loss' in want:
      close(level.vq_loss(output), want['vq_loss'], VALUE, 'loss')


@pytest.mark.golden('*c1[34]_*', where=is_quantized)
def test_golden_statistics_of_codes_after_a_step(golden):
  """Moving averages of each stage; with a top LM, theirs move twice.

  The original's perplexity is that of moving averages.
  """
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
  """Of the level as a whole, where the file has its expander."""
  for level in levels(golden):
    losses, objective = level.losses, level.objective
    # Codebooks are no parameters of ours: see `golden_quantizers`.
    names = ('compressor.', 'expander.', 'dec_vq.codebook')
    if not level.has_expander:
      names, objective = ENTROPY_BRANCH, functools.partial(entropy_loss, level)
    learned = {k: x for k, x in level.params.items() if k.startswith(names)}
    wanted = level.grads or level.grad_norms
    if wanted:
      objective = jax.value_and_grad(objective, has_aux=True)
    found = jax.jit(objective)(learned)
    (total, parts), grads = found if wanted else (found, {})
    if level.has_expander:
      ce, logits_BSV = parts
      close(total, losses['loss_total'], VALUE, 'loss')
      close(ce, losses['loss_digit_ce'], VALUE, 'cross-entropy')
      if level.logits_BSV is not None:
        is_real = level.is_real
        close(logits_BSV[is_real], level.logits_BSV[is_real], VALUE, 'logits')
    assert not wanted or grads.keys() & wanted.keys()
    for name in grads.keys() & wanted.keys():
      got = grads[name] if level.grads else jnp.linalg.norm(grads[name].ravel())
      close(got, wanted[name], GRADIENT, name)


def entropy_loss(level, p):
  return level.entropy(p)[2], ()
