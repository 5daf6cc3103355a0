"""A top LM small enough to follow every one of its codes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import TopLMConfig
from abstractinator.model.top_lm import CodeSequence, CodeSequenceTransformer
from abstractinator.objective import losses
from tests.helpers.implementations import XLA
from tests.helpers.jitted import init, jit_to_numpy

D_LEVEL, WIDTH, SLOTS, WINDOW = 6, 16, 12, 3
# Codes of one stage, of three, and of one that leaves two digits out.
SIZES = {'vq': (11,), 'rvq': (4, 3, 5), 'forbidden': (4, 4)}
FORBIDDEN = {'forbidden': (1, 3)}
# Lengths of the documents of three rows; the second cuts off its last one.
LENGTHS = ((3, 1, 5), (7, 5), (2,))
IS_CUT = (False, True, False)

ATTENTION = {
  'regular': {
    'form': 'regular',
    'kv_dim': None,
    'query_dim': None,
    'retrieval_dim': None,
  },
  'mla': {'form': 'mla', 'kv_dim': 6, 'query_dim': 5, 'retrieval_dim': 4},
}

modes = pytest.mark.parametrize('mode', ['discrete', 'continuous'])
kinds = pytest.mark.parametrize('kind', list(SIZES))
# All pairs of settings, once each; all triples are nightly.
_PAIRS = (
  ('discrete', 'regular', None),
  ('continuous', 'mla', None),
  ('discrete', 'mla', WINDOW),
  ('continuous', 'regular', WINDOW),
)
variants = pytest.mark.parametrize(
  ('mode', 'form', 'window'),
  [
    pytest.param(*x, marks=[] if x in _PAIRS else [pytest.mark.nightly])
    for x in itertools.product(
      ('discrete', 'continuous'),
      ('regular', 'mla'),
      (None, WINDOW),
    )
  ],
)


def values(mode='discrete', form='regular', window=None):
  """Returns a config as plain values."""
  return {
    'mode': mode,
    'inputs': 'codes',
    'base': 'none',
    'expand': False,
    'd_model': WIDTH,
    'stack': {
      'num_layers': 1,
      'num_heads': 2,
      'window': window,
      'ffn_dim': 24,
      'attention': ATTENTION[form],
    },
  }


def make_sequence(kind='rvq', seed=0):
  """Returns rows of codes, whose vectors come from a fixed table."""
  rng = np.random.default_rng(seed)
  sizes = SIZES[kind]
  allowed = [d for d in range(sizes[0]) if d not in FORBIDDEN.get(kind, ())]
  shape = (len(LENGTHS), SLOTS)
  codes = rng.choice(allowed, shape)
  codes += sizes[0] * rng.integers(0, np.prod(sizes[1:], dtype=int), shape)
  table = np.random.default_rng(7).normal(size=(np.prod(sizes), D_LEVEL))
  document = np.full(shape, -1)
  is_end = np.zeros(shape, bool)
  for row, lengths in enumerate(LENGTHS):
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    document[row, : len(numbers)] = numbers
    is_end[row, np.cumsum(lengths) - 1] = True
    is_end[row, len(numbers) - 1] = not IS_CUT[row]
  return CodeSequence(
    codes_BP=jnp.asarray(codes, jnp.int32),
    vectors_BPD=jnp.asarray(table[codes], jnp.float32),
    document_BP=jnp.asarray(document, jnp.int32),
    is_end_BP=jnp.asarray(is_end),
  )


class TopLM:
  """A top LM, whose methods are compiled once per shape.

  Attributes:
    initial: Initial variables.
    variables: Variables whose predictions are far from uniform.
  """

  def __init__(self, mode='discrete', kind='rvq', form='regular', window=None):
    self.sizes = SIZES[kind]
    self.model = CodeSequenceTransformer(
      TopLMConfig.from_dict(values(mode, form, window)),
      D_LEVEL,
      self.sizes,
      FORBIDDEN.get(kind, ()),
      XLA,
      jnp.float32,
    )
    self.initial = init(self.model, jax.random.key(1), make_sequence(kind))
    self.variables = jax.tree_util.tree_map_with_path(
      lambda path, x: (
        15 * x if 'logits' in str(path) or 'end_head' in str(path) else x
      ),
      self.initial,
    )
    apply = self.model.apply
    self.call = jit_to_numpy(apply)
    self.prefill = jit_to_numpy(apply, method='prefill')
    self.step = jit_to_numpy(apply, method='step')
    self.code_logits = jit_to_numpy(
      apply, method=lambda m, x, digits: m.code_head(x, digits)
    )
    self.end_logits = jit_to_numpy(apply, method='end_logits')
    self.next_vector = jit_to_numpy(apply, method='next_vector')
    self.terms = jit_to_numpy(self._terms)
    self.loss_and_gradients = jit_to_numpy(jax.value_and_grad(self.loss))

  def _terms(self, variables, sequence):
    return losses.top_lm_terms(self.model.apply(variables, sequence), sequence)

  def loss(self, variables, sequence):
    """Returns the sum of the loss terms."""
    return sum(self._terms(variables, sequence).values())


make = functools.cache(TopLM)
