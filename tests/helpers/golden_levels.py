"""Levels of the original, from files of single levels and of pyramids.

A level is built here, in the original's wiring, from the parts that the
imported tests compare with the files of the original's parts.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.losses import (
  softmax_cross_entropy_with_integer_labels as cross_entropy,
)

from tests.golden import (
  compressor_test,
  entropy_test,
  expander_test,
  top_lm_test,
)
from tests.helpers.golden_files import Case
from tests.helpers.golden_parts import below

# Prefixes of parameters that the loss of the entropy model moves, and no other.
ENTROPY_BRANCH = ('compressor.entropy_model.', 'compressor.embedding.')
# Prefixes of parameters that the losses of a level move. Codebooks of the
# quantizer are no parameters of ours: see `golden_quantizers`.
LEARNED = ('compressor.', 'expander.', 'dec_vq.codebook')
# Prefixes of second names of codebooks.
ALIASES = ('compressor.quantizer.', 'expander.vq_lo.')
# Settings of the entropy model of a level that has none.
PLAIN_ENTROPY = {
  'logit': {'use': True, 'tie_to_embedding': False},
  'gaussian': {
    'use': False,
    'detach_trunk': False,
    'clamp_logvar_min': -8.0,
    'clamp_logvar_max': 8.0,
  },
  'loss': {'ce_weight': 1.0, 'nll_weight': 0.0},
  'segmentation': {'source': 'logit'},
}


@dataclasses.dataclass(frozen=True)
class Level:
  """One level of a file.

  Attributes:
    name: Name of the file, and number of the level in it.
    config: Settings of the original.
    params: Parameters and buffers of the original, by their names in a level.
    ids_BS: Ids, [B, S] int32.
    is_padding_BS: Padding mask, [B, S] bool; None without one.
    compressed: Outputs of the compressor.
    logits_BSV: Logits of the expander, [B, S, V]; None if the file has none.
    losses: Losses of the level, and means over rows.
    perplexity: Perplexity of moving averages before and after a step, if known.
    after: State of the quantizer after a training step; empty if unknown.
    has_own_codebook: True if that state is before the optimizer's step.
    grads: Gradients of the sum of losses, or their norms, by parameter; empty
      if unknown.
    are_norms: True if `grads` has norms.
  """

  name: str
  config: dict[str, Any]
  params: dict[str, jax.Array]
  ids_BS: np.ndarray
  is_padding_BS: np.ndarray | None
  compressed: dict[str, np.ndarray]
  logits_BSV: np.ndarray | None
  losses: dict[str, np.ndarray]
  perplexity: dict[str, np.ndarray]
  after: dict[str, np.ndarray]
  has_own_codebook: bool
  grads: dict[str, np.ndarray] | dict[str, float]
  are_norms: bool

  @property
  def is_real(self):
    if self.is_padding_BS is None:
      return np.ones(self.ids_BS.shape, bool)
    return ~self.is_padding_BS

  @property
  def has_expander(self):
    return 'dec_vq.codebook' in self.params

  def graded(self, gradients):
    """Returns the gradients that the file has of `objective`, by name."""
    prefixes = LEARNED if self.has_expander else ENTROPY_BRANCH
    if self.grads and all(k.startswith(ENTROPY_BRANCH) for k in self.grads):
      prefixes = ENTROPY_BRANCH
    return {
      name: x
      for name, x in gradients.items()
      if name.startswith(prefixes) and not name.startswith(ALIASES)
    }

  def _case(self, cfg, params=(), **arrays):
    """Returns a file of a part; arrays that are None are left out."""
    named = {k.replace('__', '/'): x for k, x in arrays.items()}
    kept = {k: x for k, x in named.items() if x is not None}
    kept |= {f'param/{k}': params[k] for k in params}
    return Case(self.name, cfg, kept)

  @functools.cached_property
  def _compressor(self):
    c = self.config
    ctor = {
      'dim': c['D'],
      'heads': c['c_heads'],
      'window': c['c_window'],
      'num_queries': c['c_num_queries'],
      'num_compression_encoder_layers': c['c_num_compression_encoder_layers'],
    }
    cfg = {
      'ctor': ctor,
      'attention': c['compressor_attention'],
      'Q_max': c['c_output_length'] // c['c_num_queries'],
    }
    return self._case(
      cfg,
      in__ids=self.ids_BS,
      in__key_padding_mask=self.is_padding_BS,
      aux__valid=self.is_real,
      out__seg_id=self.compressed['seg_id'],
    )

  def entropy(self, p):
    """Returns predictions, the original's `bits`, and the loss."""
    c = self.config
    settings = c['c_entropy_config'] or PLAIN_ENTROPY
    is_tied = settings['logit']['tie_to_embedding']
    case = self._case(
      {
        'dim': c['D'],
        'vocab_size': c['vocab_size'],
        'trunk_heads': c['c_heads'],
        'trunk_window': c['c_window'],
        'attn': c['compressor_attention'],
        'entropy_cfg': settings,
        'tied': is_tied,
      },
      in__ids=self.ids_BS,
      in__key_padding_mask=self.is_padding_BS,
    )
    table = p['compressor.embedding.weight']
    own = below(p, 'compressor.entropy_model.') | {'logit_tied_weight': table}
    x, group_BS = table[self.ids_BS], entropy_test.groups(case)
    with pytest.MonkeyPatch.context() as patch:
      compressor_test.use_their_mask(self._compressor, patch)
      predicted = entropy_test.forward(case, own, x, group_BS)
    return (
      predicted,
      entropy_test.bits(case, predicted, x),
      entropy_test.loss(case, predicted, x, group_BS),
    )

  @functools.cached_property
  def quantizer(self):
    """Our quantizer with the codebooks of the file, and its depth."""
    # The original has no setting of the decay.
    decay = 0.99 if self.config['c_use_standard_vq'] else 0.999
    case = self._case({}, self.params)
    # The property is cached, and may be read while jax traces.
    with jax.ensure_compile_time_eval():
      return top_lm_test.quantizer_of(case, 'hi_quantizer.', decay)

  def compress(self, p):
    """Returns states, vectors of recorded segments, and quantized vectors."""
    own = below(p, 'compressor.')
    with pytest.MonkeyPatch.context() as patch:
      compressor_test.use_their_mask(self._compressor, patch)
      states_BSD = compressor_test.states(self._compressor, own)
    pooled_BUD = compressor_test.pooled(self._compressor, own, states_BSD)
    everything = jnp.ones(pooled_BUD.shape[:2], bool)
    quantizer, _ = self.quantizer
    rows = jnp.arange(len(pooled_BUD))
    return states_BSD, pooled_BUD, quantizer(pooled_BUD, everything, rows)

  def vq_loss(self, output):
    """Returns the original's loss of the quantizer; empty slots count."""
    distance = jnp.mean(output.distance_BP)
    learned = jax.lax.stop_gradient(distance)
    return learned + self.config['c_vq_beta'] * distance

  def expand(self, p, states_BSD, memory_BPD):
    """Returns the logits of the id after each, from the encoder's states."""
    c = self.config
    lookback = c['decoder_cross_attention']['lookback']
    lookback = c['d_cross_window'] if lookback is None else lookback
    is_valid_BP = self.compressed['valid_mask']
    # Segments past the last slot read it.
    own_BS = np.minimum(self.compressed['seg_id'], is_valid_BP.shape[1] - 1)
    ctor = {
      'D': c['D'],
      'H': c['d_heads'],
      'cross_window': lookback,
      'use_sqdist_logits': c['d_use_sqdist_logits'],
    }
    case = self._case(
      {'attention': c['decoder_self_attention'], 'ctor': ctor},
      in__seg_ids=own_BS,
      in__codes_hi=is_valid_BP,
      in__src_key_padding_mask=~is_valid_BP,
      in__tgt_key_padding_mask=self.is_padding_BS,
    )
    own = below(p, 'expander.') | {'vq_lo.codebook': p['dec_vq.codebook']}
    with pytest.MonkeyPatch.context() as patch:
      original = expander_test.Original(case)
      original.install(patch)
      (logits_BSV,) = expander_test.logits_from_states(
        case, original, own, memory_BPD, states_BSD
      )
    return logits_BSV

  def objective(self, p):
    """Returns the sum of losses, the cross-entropy and the logits."""
    c = self.config
    _, _, entropy = self.entropy(p)
    states_BSD, _, output = self.compress(p)
    # The original's straight-through gradient is `depth` times too large.
    once, (_, depth) = output.vectors_BPD, self.quantizer
    memory_BPD = depth * once - jax.lax.stop_gradient((depth - 1) * once)
    if 'hidden_states' in self.compressed:
      # In the original ids see the first id of padding, with sdpa all ids do.
      there_BSD, is_real = self.compressed['hidden_states'], self.is_real
      states_BSD = jnp.where(is_real[..., None], states_BSD, there_BSD)
    logits_BSV = self.expand(p, states_BSD, memory_BPD)
    ce_BS = cross_entropy(logits_BSV[:, :-1], jnp.asarray(self.ids_BS)[:, 1:])
    is_target_BS = self.is_real[:, 1:]
    ce = jnp.sum(jnp.where(is_target_BS, ce_BS, 0)) / is_target_BS.sum()
    total = (
      c['w_code_ce'] * ce
      + c['w_entropy_ce'] * entropy
      + c['w_vq'] * self.vq_loss(output)
    )
    return total, (ce, logits_BSV)


def levels(golden):
  """Returns the levels whose parameters a file has, bottom first."""
  arrays, cfg = golden.arrays, golden.cfg
  padding = arrays.get('in/key_padding_mask')
  if 'config' in cfg:
    return [_whole(golden, arrays['in/token_ids'], padding)]
  found = []
  ids = arrays.get('in/tokens', arrays.get('in/prompt'))
  for i, config in enumerate(cfg.get('levels') or [cfg['level']]):
    if f'param/levels.{i}.compressor.embedding.weight' in arrays:
      found.append(_of_pyramid(golden, i, config, ids, padding))
    compressed = golden.group(f'out/eval_comp{i}')
    if compressed:
      ids, padding = compressed['vq_indices'], ~compressed['valid_mask']
  return found


def _whole(golden, ids_BS, is_padding_BS):
  compressed, out = golden.group('comp'), golden.group('out')
  after = golden.group('state_after')
  # Without a step counts are zero, and the perplexity has no meaning.
  perplexity = {'after': compressed['vq_perplexity']} if after else {}
  return Level(
    golden.name,
    golden.cfg['config'],
    jax.tree.map(jnp.asarray, golden.group('param')),
    ids_BS,
    is_padding_BS,
    compressed,
    out.pop('stage_logits_last', None),
    out,
    perplexity,
    below(after, 'hi_quantizer.'),
    True,
    golden.group('grad'),
    False,
  )


def _of_pyramid(golden, number, config, ids_BS, is_padding_BS):
  prefix = f'levels.{number}.'
  compressed = golden.group(f'out/eval_comp{number}') or {
    'seg_id': golden.arrays['out/seg_id'],
    'patch_end_mask': golden.arrays['out/patch_end'],
  }
  perplexity = {
    when: golden.arrays[f'out/{mode}/perplexity_L{number}']
    for when, mode in (('before', 'eval'), ('after', 'train0'))
    if f'out/{mode}/perplexity_L{number}' in golden.arrays
  }
  stepped = 'state_after_step0_forward_and_opt'
  after = below(golden.group(stepped), f'{prefix}hi_quantizer.')
  norms = below(golden.cfg.get('grad_norm_per_param_step0', {}), prefix)
  if golden.cfg.get('top') is not None:
    # The top LM moves the quantizer a second time, and its losses move all of
    # the level but its entropy model.
    after = {}
    norms = {k: x for k, x in norms.items() if k.startswith(ENTROPY_BRANCH)}
  return Level(
    f'{golden.name} {number}',
    config,
    jax.tree.map(jnp.asarray, below(golden.group('param'), prefix)),
    ids_BS,
    is_padding_BS,
    compressed,
    None,
    below(golden.group('out/eval'), f'L{number}.'),
    perplexity,
    after,
    False,
    norms,
    True,
  )
