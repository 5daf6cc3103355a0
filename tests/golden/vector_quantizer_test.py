"""The vector quantizer against the original's numbers.

Codes, losses, gradients and moving averages of each step start from the state
that the file has before it. Differences are in the names of the tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.objective import metrics
from tests.helpers.golden_quantizers import (
  NEVER,
  assert_forward,
  assert_moved,
  is_cold,
  module,
  moved,
  perplexity,
  state_of,
  staying,
  steps_of,
)


def resets(golden):
  """Returns True if entries are replaced within the steps."""
  return 'R_MAX' in golden.cfg


@pytest.mark.golden('c07_*')
def test_golden_vq_codes_losses_and_gradients(golden):
  ctor = golden.cfg['ctor']
  learns = not ctor.get('ema', True)
  model = module(
    'vq',
    ctor,
    forbidden=tuple(ctor.get('forbidden_ids', ())),
    codebook='gradient' if learns else 'ema',
  )
  for step, before in steps_of(golden):
    if learns:
      variables = {'params': {'codebook': {'embedding': before['codebook']}}}
    else:
      state = state_of(before, '', ctor['decay'])
      variables = {'vq': {'state': state}}
    z = golden.arrays[f'in/z{step}']
    kept = np.ones(z.shape[:2], bool)
    _, grads = assert_forward(golden, step, model, variables, 1, kept)
    if learns and step != '_eval':
      np.testing.assert_allclose(
        grads['codebook']['embedding'],
        golden.arrays[f'grad/{step}/codebook'],
        rtol=2e-5,
        atol=2e-4,
      )


@pytest.mark.golden(
  'c07_*', where=lambda x: x.cfg['ctor'].get('ema', True) and not resets(x)
)
def test_golden_vq_moving_averages_and_perplexity(golden):
  ctor = golden.cfg['ctor']
  pad = ctor.get('padding_token_id', 2)
  for step, before in steps_of(golden):
    if step == '_eval':
      continue
    z_NC = golden.arrays[f'in/z{step}'].reshape(-1, ctor['D'])
    codes = jnp.asarray(golden.arrays[f'out/indices{step}'].reshape(-1))
    state = state_of(before, '', ctor['decay'])
    stays = staying(state, codes, pad) if is_cold(golden) else None
    state = moved(state, z_NC, codes, pad)
    assert_moved(state, golden.group(f'state/{step}'), '', stays)
    np.testing.assert_allclose(
      perplexity(state.ema_count_K, (pad, *ctor.get('forbidden_ids', ()))),
      golden.arrays[f'out/perplexity{step}'],
      rtol=2e-4,
    )


@pytest.mark.golden('c07_*', where=lambda x: not x.cfg['ctor'].get('ema', True))
def test_golden_vq_perplexity_of_a_batch(golden):
  """Without moving averages both count the codes of the batch."""
  ctor = golden.cfg['ctor']
  for step, _ in steps_of(golden):
    counts = np.bincount(
      golden.arrays[f'out/indices{step}'].ravel(), minlength=ctor['K']
    ).astype(np.float64)
    # The code of padding counts as 0, if the codebook has it.
    counts[ctor['padding_token_id'] :][:1] = 0
    summary = metrics.summarize_level(
      {'code_counts': metrics.Mean(np.maximum(counts, 1e-5), 1.0)}
    )
    np.testing.assert_allclose(
      summary['codebook_perplexity'],
      golden.arrays[f'out/perplexity{step}'],
      rtol=2e-4,
    )


@pytest.mark.golden('c07_*', where=resets)
def test_golden_vq_resets_differ_in_which_and_agree_on_the_rest(golden):
  """Entries that the original replaces start over as ours do.

  The original draws the vectors at random; ours gives all dead entries
  different vectors. Both keep protected entries; ours also replaces the code
  that stands for padding in the original.
  """
  ctor = golden.cfg['ctor']
  pad, num_replaced = ctor['padding_token_id'], 0
  protected = tuple(ctor.get('protected_ids', ()))
  for step, before in steps_of(golden):
    z_NC = golden.arrays[f'in/z{step}'].reshape(-1, ctor['D'])
    codes = jnp.asarray(golden.arrays[f'out/indices{step}'].reshape(-1))
    state = state_of(
      before,
      '',
      ctor['decay'],
      # The original counts age from the end of the step of the last hit.
      reset_after_steps=ctor['stale_after'] - 1,
      protected=protected,
    )
    state = state.replace(
      step=jnp.int32(step), last_hit_step_K=jnp.asarray(before['last_hit_step'])
    )
    after = golden.group(f'state/{step}')
    kept = moved(state.replace(reset_interval_steps=NEVER), z_NC, codes, pad)
    is_replaced = after['ema_cluster_size'] != np.asarray(kept.ema_count_K)
    is_replaced &= np.abs(after['codebook'] - kept.codebook_KC).max(1) > 1e-3
    rest = {
      name: array[~is_replaced]
      for name, array in after.items()
      if array.ndim and len(array) == ctor['K']
    }
    ours = jax.tree.map(
      lambda x, is_kept=~is_replaced: x[is_kept] if x.ndim else x, kept
    )
    stays = [x[~is_replaced] for x in staying(state, codes, pad)]
    assert_moved(ours, rest, '', stays)
    # A full reservoir, so that no dead entry has to wait.
    state = state.replace(
      reset_interval_steps=1,
      reservoir_step_R=jnp.zeros_like(state.reservoir_step_R),
    )
    reset = moved(state, z_NC, codes, pad)
    ours_replaced = np.asarray(reset.last_hit_step_K) == step + 1
    # Entries that the original replaces are dead in ours, with equal counts.
    assert not is_replaced[~ours_replaced].any()
    np.testing.assert_array_equal(after['ema_cluster_size'][is_replaced], 1)
    np.testing.assert_array_equal(reset.ema_count_K[ours_replaced], 1)
    assert not ours_replaced[list(protected)].any()
    num_replaced += is_replaced.sum()
  assert num_replaced > 0
