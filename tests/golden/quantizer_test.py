"""Quantizers against the original's numbers.

What the original does to its codebooks on the way is redone with the file's
own state: codes, losses, gradients, moving averages, stage by stage.
Departures: see the names of the tests.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator import metrics
from abstractinator.ops import codebook
from abstractinator.ops import digits as digits_lib
from tests import tiny_quantizer

NEVER = 10**6
# What the original takes for padding among composed codes.
PAD = 258


def module(kind, ctor, **changes):
  return tiny_quantizer.model(
    d_model=ctor['D'], kind=kind, codebook_size=ctor['K'], **changes
  )


def state_of(arrays, prefix, decay, **policy):
  """Our state from the original's."""
  size, width = arrays[f'{prefix}codebook'].shape
  state = codebook.initial_state(
    jax.random.key(0),
    size,
    width,
    decay=decay,
    **dict(
      reset_interval_steps=NEVER,
      reset_after_steps=NEVER,
      reset_usage=0.0,
      protected=(),
      kmeans_step=None,
    )
    | policy,
  )
  arrays = {k: jnp.asarray(v) for k, v in arrays.items()}
  return state.replace(
    codebook_KC=arrays[f'{prefix}codebook'],
    ema_count_K=arrays[f'{prefix}ema_cluster_size'],
    ema_sum_KC=arrays[f'{prefix}ema_weight_sum'],
    last_hit_step_K=jnp.zeros((size,), jnp.int32),
  )


def moved(state, x_NC, code_N, pad_code):
  """One step of the moving average.

  The original gives one code the part of padding: what falls on it counts for
  nothing. Ours has no such code, so those vectors are passed as invalid.
  """
  return codebook.advance(
    codebook.observe(
      state,
      jnp.asarray(x_NC),
      code_N,
      code_N != pad_code,
      jnp.arange(len(code_N), dtype=jnp.uint32),
    )
  )


def staying(state, code_N, pad_code):
  """[K] bool, entries without hits, and where they are."""
  hit = code_N[code_N != pad_code]
  is_staying_K = np.ones(len(state.codebook_KC), bool)
  is_staying_K[np.asarray(hit)] = False
  return is_staying_K, np.asarray(state.codebook_KC)


def moved_stages(states, digits_BPM, z_BPD):
  """The digits of each stage, and its state after a step."""
  rest_NC = z_BPD.reshape(-1, z_BPD.shape[-1])
  for i, state in enumerate(states):
    digit_N = digits_BPM[..., i].reshape(-1)
    yield digit_N, moved(state, rest_NC, digit_N, PAD)
    rest_NC = rest_NC - state.codebook_KC[digit_N]


def perplexity(counts_K, unused):
  """The original's, of moving averages: none below 1e-5."""
  counts_K = np.array(counts_K)
  counts_K[[c for c in unused if c < len(counts_K)]] = 0
  summary = metrics.summarize(
    {'code_counts': metrics.Mean(1e3 * np.maximum(counts_K, 1e-5), 1.0)}
  )
  return summary['codebook_perplexity']


def assert_moved(
  got, arrays, prefix, stays=None, only=('codebook', 'count', 'sum')
):
  """Relative as well as absolute: entries of the original reach 1e6.

  Args:
    got: Our state after a step.
    arrays: The original's.
    prefix: Of their names.
    stays: From `staying`, where the original moves entries without hits: it
      makes them the ratio of sums and counts even if both have vanished, or
      never were of those entries.
    only: What to compare.
  """
  codebook_KC = arrays[f'{prefix}codebook']
  if stays is not None:
    codebook_KC = np.where(stays[0][:, None], stays[1], codebook_KC)
  for want, value, name in (
    (codebook_KC, got.codebook_KC, 'codebook'),
    (arrays[f'{prefix}ema_cluster_size'], got.ema_count_K, 'count'),
    (arrays[f'{prefix}ema_weight_sum'], got.ema_sum_KC, 'sum'),
  ):
    if name not in only:
      continue
    # A coordinate is as exact as the entry is long: it is a mean of vectors.
    scale = np.abs(want).reshape(len(want), -1).max(axis=1)
    error = np.abs(value - want).reshape(len(want), -1).max(axis=1)
    assert (error <= 2e-5 * (1 + scale)).all(), f'{prefix}{name}'


def is_cold(golden, prefix=''):
  """Whether moving averages start from nothing."""
  return not golden.arrays[f'param/{prefix}ema_cluster_size'].any()


def resets(golden):
  """Whether entries are replaced within the steps."""
  return 'R_MAX' in golden.cfg


def steps_of(golden):
  """The state before each step, by the end of its name, and the number."""
  before = golden.group('param')
  for step in range(golden.cfg['steps']):
    yield step, before
    before = {**before, **golden.group(f'state/{step}')}
  if 'in/z_eval' in golden.arrays:
    yield '_eval', before


def slots(z_BPD):
  return jnp.ones(z_BPD.shape[:2], bool), jnp.arange(len(z_BPD))


def assert_forward(golden, step, model, variables, scale, is_kept):
  """Codes, vectors, losses and the gradients of both in one step.

  Args:
    golden: The file.
    step: Which.
    model: Of ours.
    variables: With the codebooks before the step.
    scale: By how much the original's straight-through gradient is too large.
    is_kept: [B, P] bool, vectors that the original does not call padding.
  """
  arrays, beta = golden.arrays, golden.cfg['ctor']['beta']
  z = jnp.asarray(arrays[f'in/z{step}'])
  keep = jnp.asarray(is_kept)

  def run(params, z):
    output = model.apply({**variables, 'params': params}, z, *slots(z))
    learned = jnp.mean(output.codebook_distance_BP)
    commitment = jnp.mean(output.distance_BP)
    loss = learned + beta * commitment
    if f'cot/z_q{step}' in arrays:
      weight = arrays[f'cot/z_q{step}'] * keep[..., None]
      loss += scale * jnp.sum(output.vectors_BPD * weight)
    return loss, (output, commitment)

  (grads, grad_z), (output, commitment) = jax.grad(
    run, argnums=(0, 1), has_aux=True
  )(variables.get('params', {}), z)
  codes = np.asarray(output.codes_BP)[is_kept]
  np.testing.assert_array_equal(codes, arrays[f'out/indices{step}'][is_kept])
  np.testing.assert_allclose(
    output.vectors_BPD[keep],
    arrays[f'out/z_q{step}'][is_kept],
    rtol=2e-5,
    atol=2e-5,
  )
  # The original adds the codebook's loss whether or not gradient moves it.
  np.testing.assert_allclose(
    (1 + beta) * commitment, arrays[f'out/vq_loss{step}'], rtol=2e-5, atol=2e-5
  )
  if f'grad_in/z{step}' in arrays:
    np.testing.assert_allclose(
      grad_z, arrays[f'grad_in/z{step}'], rtol=2e-5, atol=2e-4
    )
  return output, grads


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
  """Ours counts the codes of what was measured, as here the original does."""
  ctor = golden.cfg['ctor']
  for step, _ in steps_of(golden):
    counts = np.bincount(
      golden.arrays[f'out/indices{step}'].ravel(), minlength=ctor['K']
    ).astype(np.float64)
    # No code has the number of padding where there are fewer.
    counts[ctor['padding_token_id'] :][:1] = 0
    summary = metrics.summarize(
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

  Which ones it draws is left to chance there, and not here: all dead entries
  become different vectors. Both keep protected ones; ours also replaces the
  code that there stands for padding.
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
      # There age is counted from the end of the step of the last hit.
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
    # What is replaced there is dead here too, and weighs the same.
    assert not is_replaced[~ours_replaced].any()
    np.testing.assert_array_equal(after['ema_cluster_size'][is_replaced], 1)
    np.testing.assert_array_equal(reset.ema_count_K[ours_replaced], 1)
    assert not ours_replaced[list(protected)].any()
    num_replaced += is_replaced.sum()
  assert num_replaced > 0


def residual_module(golden):
  ctor = golden.cfg['ctor']
  size = ctor['K']
  return module(
    'rvq',
    ctor,
    depth=ctor['depth'],
    # The original reserves these in stage 0, for specials that never come.
    forbidden=(size - 3, size - 2, size - 1),
  )


@pytest.mark.golden('c08_*', where=lambda x: 'steps' in x.cfg)
def test_golden_rvq_codes_losses_and_gradients_but_for_their_depth(golden):
  """There the gradient is `depth` times the identity, here the identity.

  Rows of zeros are padding there; ours are told by a mask.
  """
  ctor = golden.cfg['ctor']
  model = residual_module(golden)
  for step, before in steps_of(golden):
    variables = {
      'vq': {
        f'stage{i}': {'state': state_of(before, f'stages.{i}.', ctor['decay'])}
        for i in range(ctor['depth'])
      }
    }
    kept = np.any(golden.arrays[f'in/z{step}'] != 0, axis=-1)
    assert_forward(golden, step, model, variables, ctor['depth'], kept)


@pytest.mark.golden('c08_*', where=lambda x: 'steps' in x.cfg)
def test_golden_rvq_moving_averages_of_each_stage(golden):
  ctor = golden.cfg['ctor']
  model = residual_module(golden)
  for step, before in steps_of(golden):
    if step == '_eval':
      continue
    z = jnp.asarray(golden.arrays[f'in/z{step}'])
    states = [
      state_of(before, f'stages.{i}.', ctor['decay'])
      for i in range(ctor['depth'])
    ]
    variables = {
      'vq': {f'stage{i}': {'state': s} for i, s in enumerate(states)}
    }
    output = model.apply(variables, z, *slots(z))
    after = golden.group(f'state/{step}')
    for i, (digit, got) in enumerate(
      moved_stages(states, output.digits_BPM, z)
    ):
      if f'stages.{i}.codebook' in after:
        is_cold_stage = is_cold(golden, f'stages.{i}.')
        stays = staying(states[i], digit, PAD) if is_cold_stage else None
        assert_moved(got, after, f'stages.{i}.', stays)


def heads(golden):
  """Our module with the codebooks of a file."""
  size, depth = golden.cfg['K'], golden.cfg['depth']
  model = module('rvq', golden.cfg, depth=depth, codebook='gradient')
  params = {
    f'stage{i}': {
      'codebook': {'embedding': golden.arrays[f'param/stages.{i}.codebook']}
    }
    for i in range(depth)
  }
  assert model.num_codes == size**depth
  return model, params


@pytest.mark.golden('c08_*', where=lambda x: 'steps' not in x.cfg)
def test_golden_codec(golden):
  ids, sizes = golden.arrays['in/ids'], (golden.cfg['K'],) * golden.cfg['depth']
  found = digits_lib.decompose(jnp.asarray(ids), sizes)
  want = golden.group('out/digits')
  for i in range(len(sizes)):
    np.testing.assert_array_equal(found[..., i], want[str(i)])
  np.testing.assert_array_equal(
    digits_lib.compose(found, sizes), golden.arrays['out/recomposed']
  )


@pytest.mark.golden('c08_*', where=lambda x: 'steps' not in x.cfg)
def test_golden_embedding_of_codes(golden):
  """There 258 is padding even where it is a code; ours has no such clash."""
  model, params = heads(golden)
  ids = golden.arrays['in/ids']
  is_code = jnp.asarray(ids != PAD)

  def embed(params):
    return model.apply({'params': params}, jnp.asarray(ids), method='lookup')

  np.testing.assert_allclose(
    embed(params)[is_code], golden.arrays['out/embed'][is_code], atol=2e-5
  )
  weight = golden.arrays['cot/embed'] * is_code[..., None]
  grads = jax.grad(lambda p: jnp.sum(embed(p) * weight))(params)
  for i in range(golden.cfg['depth']):
    np.testing.assert_allclose(
      grads[f'stage{i}']['codebook']['embedding'],
      golden.arrays[f'grad_embed/stages.{i}.codebook'],
      atol=2e-4,
    )


@pytest.mark.golden('c08_*', where=lambda x: 'steps' not in x.cfg)
@pytest.mark.parametrize('has_teacher', [True, False])
@pytest.mark.parametrize('squared', [True, False])
@pytest.mark.parametrize('conditioned', [True, False])
def test_golden_stage_logits(golden, conditioned, squared, has_teacher):
  model, params = heads(golden)
  depth, arrays = golden.cfg['depth'], golden.arrays
  flags = f'rc={conditioned}|sq={squared}'
  teacher = jnp.stack([arrays[f'in/teacher/{i}'] for i in range(depth)], -1)

  def run(params, h):
    found = model.apply(
      {'params': params},
      h,
      teacher if has_teacher else None,
      residual_conditioning=conditioned,
      distance='squared' if squared else 'dot',
      method='stage_logits',
    )
    loss = sum(
      jnp.sum(x * arrays[f'cot/logits/{i}']) for i, x in enumerate(found.logits)
    )
    return loss, found

  grads, found = jax.grad(run, argnums=(0, 1), has_aux=True)(
    params, jnp.asarray(arrays['in/h'])
  )
  name = f'{flags}|teacher={has_teacher}'
  for i in range(depth):
    np.testing.assert_allclose(
      found.logits[i],
      arrays[f'out/logits|{name}/{i}'],
      rtol=2e-6,
      atol=2e-5,
    )
    np.testing.assert_array_equal(
      found.digits_M[..., i], found.logits[i].argmax(-1)
    )
    np.testing.assert_allclose(
      grads[0][f'stage{i}']['codebook']['embedding'],
      arrays[f'grad|{name}/stages.{i}.codebook'],
      atol=2e-4,
    )
    # The original has none without residual conditioning.
    if conditioned and not has_teacher:
      np.testing.assert_array_equal(
        found.digits_M[..., i], arrays[f'out/greedy|{flags}/{i}']
      )
  np.testing.assert_allclose(grads[1], arrays[f'grad_in/h|{name}'], atol=2e-4)
