"""Steps of the original's codebooks, computed with ours."""

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.objective import metrics
from abstractinator.ops import codebook
from tests.helpers import tiny_quantizer

NEVER = 10**6
# Composed code that the original takes for padding.
PAD = 258


def module(kind, ctor, **changes):
  """Returns our quantizer of the original's sizes."""
  return tiny_quantizer.model(
    d_model=ctor['D'], kind=kind, codebook_size=ctor['K'], **changes
  )


def state_of(arrays, prefix, decay, **policy):
  """Returns our state with the original's codebook and averages."""
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
  """Returns the state after one step of the moving averages.

  In the original one code stands for padding, and its vectors do not count.
  Ours has no such code, so those vectors are passed as invalid.
  """
  row_N = np.arange(len(code_N), dtype=np.uint32)
  return _step(state, x_NC, code_N, code_N != pad_code, row_N)


@jax.jit
def _step(state, *observed):
  return codebook.advance(codebook.observe(state, *observed))


def staying(state, code_N, pad_code):
  """Returns which entries have no hits, [K] bool, and the codebook."""
  hit = code_N[code_N != pad_code]
  is_staying_K = np.ones(len(state.codebook_KC), bool)
  is_staying_K[np.asarray(hit)] = False
  return is_staying_K, np.asarray(state.codebook_KC)


def moved_stages(states, digits_BPM, z_BPD):
  """Yields the digits of each stage, and its state after a step."""
  rest_NC = z_BPD.reshape(-1, z_BPD.shape[-1])
  for i, state in enumerate(states):
    digit_N = digits_BPM[..., i].reshape(-1)
    yield digit_N, moved(state, rest_NC, digit_N, PAD)
    rest_NC = rest_NC - state.codebook_KC[digit_N]


def perplexity(counts_K, unused):
  """Returns the original's perplexity, of averages of at least 1e-5."""
  counts_K = np.array(counts_K)
  counts_K[[c for c in unused if c < len(counts_K)]] = 0
  summary = metrics.summarize_level(
    {'code_counts': metrics.Mean(1e3 * np.maximum(counts_K, 1e-5), 1.0)}
  )
  return summary['codebook_perplexity']


def assert_moved(
  got, arrays, prefix, stays=None, only=('codebook', 'count', 'sum')
):
  """Asserts that a state after a step is the original's.

  Tolerances are relative as well as absolute: its entries reach 1e6.

  Args:
    got: Our state after a step.
    arrays: State of the original after the step.
    prefix: Prefix of the names of its arrays.
    stays: Entries without hits, from `staying`, if the original moves them: it
      divides their sums by their counts even if both have vanished, or never
      belonged to those entries. Ours stay.
    only: Names of the parts to compare.
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
  """Returns True if the moving averages start from zero."""
  return not golden.arrays[f'param/{prefix}ema_cluster_size'].any()


def steps_of(golden):
  """Yields the end of the name of each step, and the state before it."""
  before = golden.group('param')
  for step in range(golden.cfg['steps']):
    yield step, before
    before = {**before, **golden.group(f'state/{step}')}
  if 'in/z_eval' in golden.arrays:
    yield '_eval', before


def slots(z_BPD):
  return jnp.ones(z_BPD.shape[:2], bool), jnp.arange(len(z_BPD))


def assert_forward(golden, step, model, variables, scale, is_kept):
  """Compares codes, vectors, losses and their gradients in one step.

  Args:
    golden: The file.
    step: Number of the step, or '_eval'.
    model: Our quantizer.
    variables: Variables with the codebooks before the step.
    scale: Factor by which the original's straight-through gradient is larger.
    is_kept: True for vectors that the original does not take for padding, [B,
      P] bool.

  Returns:
    The output, and the gradients of the parameters.
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
  # The original adds the codebook loss even if no gradient moves the codebook.
  np.testing.assert_allclose(
    (1 + beta) * commitment, arrays[f'out/vq_loss{step}'], rtol=2e-5, atol=2e-5
  )
  if f'grad_in/z{step}' in arrays:
    np.testing.assert_allclose(
      grad_z, arrays[f'grad_in/z{step}'], rtol=2e-5, atol=2e-4
    )
  return output, grads
