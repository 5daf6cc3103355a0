"""The top LM against the original's numbers.

Our module runs with the original's weights; its stack is replaced by the
original's blocks around our attention, because norms, biases and the width of
the feed-forward layer differ on purpose. At a slot the original is fed the code
of the slot and predicts the next one; ours predicts the code of the slot, from
the state of the slot before.
"""

import types
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import TopLMConfig
from abstractinator.model import attention as attention_lib
from abstractinator.model import top_lm
from abstractinator.model.layers import RMSNorm
from abstractinator.model.quantizers import read_only
from abstractinator.model.top_lm import (
  CodeSequence,
  CodeSequenceOutput,
  CodeSequenceTransformer,
)
from abstractinator.objective import losses, metrics
from abstractinator.ops import stage_logits as stage_logits_lib
from tests.helpers import golden_quantizers, tiny_quantizer, tiny_top_lm
from tests.helpers.golden_attention import (
  GRADIENT,
  OPS,
  VALUE,
  OriginalBlock,
)
from tests.helpers.golden_parts import (
  below,
  close,
  close_gradients,
  dense_attention,
  with_one,
)
from tests.helpers.implementations import BY_NAME

pytestmark = pytest.mark.usefixtures('rounded_tables')

# Our names of metrics, without `top_lm_`, and the original's, without
# `top_code_`.
DIAGNOSTICS = {
  'mse_to_target_center': 'mse',
  'margin': 'margin_D',
  'code_accuracy': 'acc',
  'center_agreement_stage0': 'center_agree_stage0',
  'top5_accuracy_stage0': 'acc_top5_stage0',
  'top10_accuracy_stage0': 'acc_top10_stage0',
  'top5_accuracy_stage0_last': 'acc_top5_stage0_last',
  'top10_accuracy_stage0_last': 'acc_top10_stage0_last',
}
# Weight of the commitment loss in the original.
BETA = 0.25


class Stack(nn.Module):
  """Stack of the original's blocks, and our norm."""

  blocks: Callable[[jax.Array, jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x, group):
    return RMSNorm(jnp.float32, name='norm')(self.blocks(x, group))


def states_and_predictions(module, sequence):
  """Returns the states after codes, and the predictions of codes."""
  output = module(sequence)
  vectors = module.project(sequence.vectors_BPD)
  return module.stack(vectors, sequence.document_BP), output.vectors_BPD


class Original:
  """Our module with the weights and blocks of the original."""

  def __init__(self, golden, top, prefix, implementation):
    self.top, self.implementation = top, implementation
    params = below(golden.group('param'), prefix)
    self.params = jax.tree.map(jnp.asarray, params)

  def __call__(self, p, x, group):
    """Returns states and predictions, in the slots of the original."""
    top = self.top

    def blocks(y, group):
      for i in range(top['num_layers']):
        block = OriginalBlock(
          below(p, f'encoder.{i}.inner.'),
          top['attention_config'],
          heads=top['num_heads'],
          width=top['dim'],
          window=None,
          implementation=self.implementation,
        )
        y = block(y, group)
      return y

    config = tiny_top_lm.values('continuous') | {'d_model': top['dim']}
    model = CodeSequenceTransformer(
      TopLMConfig.from_dict(config),
      # A constant input turns a weight into a bias.
      top['embed_dim'] + 1,
      (),
      (),
      BY_NAME[self.implementation],
      jnp.float32,
    )
    params = {
      'project': {
        'kernel': jnp.concatenate(
          [p['in_proj.weight'].T, p['in_proj.bias'][None]]
        )
      },
      'stack': {'norm': {'scale': p['final_norm.weight']}},
      'start': jnp.zeros(top['dim']),
      'vector_head': {
        'kernel': jnp.pad(p['out_proj.weight'].T, ((0, 0), (0, 1)))
      },
      'end_head': {'kernel': jnp.zeros((top['dim'], 1))},
    }
    # Our prediction in one more slot is the original's in its last.
    extra = ((0, 0), (0, 1))
    group = jnp.concatenate([group, group[:, -1:]], axis=1)
    sequence = CodeSequence(
      codes_BP=jnp.zeros_like(group),
      vectors_BPD=with_one(jnp.pad(x, (*extra, (0, 0)))),
      document_BP=group,
      is_end_BP=group > 0,
    )
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(top_lm, 'Stack', lambda *_: Stack(blocks))
      states, vectors = model.apply(
        {'params': params}, sequence, method=states_and_predictions
      )
    return states[:, :-1], vectors[:, 1:, :-1] + p['out_proj.bias']


def use_dense_op(monkeypatch, is_real, is_causal):
  """Puts an op with the original's mask in the place of ours."""
  sees = np.ones((is_real.shape[1],) * 2, bool)
  sees = np.tril(sees) if is_causal else sees
  # The additional slot sees nothing.
  sees = np.pad(sees & is_real[:, None], ((0, 0), (0, 1), (0, 1)))
  op = dense_attention(jnp.asarray(sees))
  monkeypatch.setattr(attention_lib, 'attention', op)


def quantizer_of(golden, prefix, decay=0.99):
  """Returns our quantizer with the original's codebooks, and its depth.

  Without a quantizer in the file, None and 0.
  """
  param = below(golden.group('param'), prefix)
  stages = [
    f'stages.{m}.' for m in range(len(param)) if f'stages.{m}.codebook' in param
  ]
  is_residual = bool(stages)
  stages = stages or ['']
  if f'{stages[0]}codebook' not in param:
    return None, 0
  size, width = param[f'{stages[0]}codebook'].shape
  model = tiny_quantizer.model(
    d_model=width,
    kind='rvq' if is_residual else 'vq',
    codebook_size=size,
    depth=len(stages),
    forbidden=tuple(
      map(int, np.flatnonzero(param[f'{stages[0]}forbidden_mask']))
    ),
  )
  states = [
    {'state': golden_quantizers.state_of(param, stage, decay)}
    for stage in stages
  ]
  named = {f'stage{m}': state for m, state in enumerate(states)}
  return model.bind({'vq': named if is_residual else states[0]}), len(stages)


@pytest.mark.golden('c12_*')
@OPS
def test_golden_top_lm_states_predictions_and_gradients(
  golden, implementation, monkeypatch
):
  """Ours stops the gradient of inputs; here it passes, as in the original."""
  through = types.SimpleNamespace(stop_gradient=lambda x: x)
  monkeypatch.setattr(top_lm, 'lax', through)
  original = Original(golden, golden.cfg['cfg'], '', implementation)
  x = jnp.asarray(golden.arrays['in/x'])
  padding = golden.arrays.get(
    'in/key_padding_mask', np.zeros(x.shape[:2], bool)
  )
  group = jnp.asarray(np.where(padding, -1, 0), jnp.int32)
  # With sdpa and a padding mask the original is not causal.
  kernel = golden.cfg['cfg']['attention_config']['kernel']
  is_causal = not (kernel == 'sdpa' and 'in/key_padding_mask' in golden.arrays)
  if implementation == 'dense':
    use_dense_op(monkeypatch, ~padding, is_causal)
  quantizer, depth = quantizer_of(golden, 'vq.')
  is_real = golden.arrays['aux/valid'] & ~padding
  assert is_real.any()

  def run(p, x):
    states, vectors = original(p, x, group)
    if quantizer is None:
      return states, vectors, None
    every = jnp.ones(x.shape[:2], bool)
    quantized = read_only(quantizer)(vectors, every, jnp.arange(len(x)))
    return states, vectors, quantized

  def objective(p, x):
    """Returns the objective of the file's gradients.

    Each stage of the quantizer passes the whole gradient there.
    """
    _, vectors, quantized = run(p, x)
    cotangent = golden.arrays['cot/predictions']
    if quantized is None:
      return jnp.sum(vectors * cotangent)
    total = depth * jnp.sum(quantized.vectors_BPD * cotangent)
    return total + BETA * jnp.mean(quantized.distance_BP)

  states, vectors, quantized = jax.jit(run)(original.params, x)
  if not is_causal and implementation != 'dense':
    with pytest.raises(AssertionError, match='Mismatched elements'):
      close(states[is_real], golden.arrays['out/hidden_states'][is_real], VALUE)
    return
  for name, got in (
    ('hidden_states', states),
    ('predictions_pre_vq', vectors),
    ('predictions', vectors if quantized is None else quantized.vectors_BPD),
  ):
    want = golden.arrays[f'out/{name}']
    close(got[is_real], want[is_real], VALUE, name)
  if quantized is not None:
    np.testing.assert_array_equal(
      np.asarray(quantized.codes_BP)[is_real],
      golden.arrays['out/indices'][is_real],
    )
  grads = golden.group('grad')
  # The original also trains on the codes of what it predicts for padding.
  if not grads or (quantized is not None and implementation != 'dense'):
    return
  if quantized is not None:
    loss = (1 + BETA) * np.mean(quantized.distance_BP)
    close(loss, golden.arrays['out/vq_loss'], VALUE, 'vq_loss')
  # Codebooks are no parameters of ours: see `golden_quantizers`.
  trained = {k: x for k, x in original.params.items() if k[:3] != 'vq.'}
  got, got_x = jax.jit(jax.grad(objective, argnums=(0, 1)))(trained, x)
  wanted = {k: x for k, x in grads.items() if k[:3] != 'vq.'}
  close_gradients(got, wanted, GRADIENT)
  close(got_x, golden.arrays['grad_in/x'], GRADIENT, 'x')


def nearest_scores(quantizer, vectors):
  """Returns scores of the entries of each stage, higher for nearer ones."""
  return stage_logits_lib.stage_logits(
    quantizer.to_code_space(vectors),
    quantizer.codebooks(),
    None,
    residual_conditioning=True,
    distance='squared',
  )


@pytest.mark.nightly
@pytest.mark.golden('*c14_pyr1_top_*')
def test_golden_top_lm_loss_and_diagnostics(golden, monkeypatch):
  """Predictions of the codes of a pyramid, with the original's masks.

  The original masks inputs, so that its last target in a row is an empty slot;
  ours masks targets. The file in our folder is a part of one of the original's.
  """
  original = Original(golden, golden.cfg['top'], 'top_lm.', 'xla')
  comp, want = golden.group('out/eval_comp0'), golden.group('out/eval')
  memory = jnp.asarray(comp['vq_embeddings'])
  is_input = jnp.asarray(comp['valid_mask'])[:, :-1]
  if golden.cfg['top']['attention_config']['kernel'] == 'sdpa':
    # The mask of empty slots makes sdpa not causal.
    use_dense_op(monkeypatch, comp['valid_mask'][:, :-1], is_causal=False)
  document = jnp.where(is_input, 0, -1)
  _, vectors = original(original.params, memory[:, :-1], document)
  sequence = CodeSequence(
    codes_BP=jnp.asarray(comp['vq_indices'])[:, 1:],
    vectors_BPD=memory[:, 1:],
    document_BP=document,
    is_end_BP=document > 0,
  )
  output = CodeSequenceOutput(
    None, vectors, jnp.zeros(document.shape), jnp.zeros(())
  )
  terms = losses.top_lm_terms(output, sequence)
  quantizer, _ = quantizer_of(golden, 'levels.0.hi_quantizer.')
  quantize = read_only(quantizer)
  quantized = quantize(vectors, is_input, jnp.arange(len(memory)))
  scores = quantize(vectors, method=nearest_scores).logits[0]
  found = metrics.summarize_level(
    metrics.continuous_metrics(output, sequence, terms, quantized, scores)
  )
  for name, original_name in DIAGNOSTICS.items():
    got = found[f'top_lm_{name}']
    expected = want[f'top_code_{original_name}']
    # A margin is a sum over dimensions, and so is its error.
    size = memory.shape[-1] if name == 'margin' else 1
    np.testing.assert_allclose(
      got, expected, rtol=0, atol=VALUE * size, err_msg=name
    )
