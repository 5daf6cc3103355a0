"""Top LM code by code, with a cache, against whole rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.top_lm import CodeSequenceTransformer
from tests.helpers.jitted import jit
from tests.helpers.streams import stream
from tests.helpers.tiny_top_lm import SLOTS, make, make_sequence, variants


class Owner(nn.Module):
  """Module that owns a top LM."""

  top: CodeSequenceTransformer

  def __call__(self, sequence):
    cache = self.top.init_cache(len(sequence.codes_BP), SLOTS)
    return self.top.prefill(sequence.vectors_BPD, sequence.document_BP, cache)


@pytest.mark.parametrize('form', ['regular', 'mla'])
def test_a_module_that_owns_a_top_lm_makes_its_cache(form):
  lm, sequence = make('discrete', 'rvq', form), make_sequence()
  variables = {'params': {'top': lm.variables['params']}}
  got = jit(Owner(lm.model).apply)(variables, sequence)
  cache = lm.model.init_cache(len(sequence.codes_BP), SLOTS)
  want = lm.prefill(
    lm.variables, sequence.vectors_BPD, sequence.document_BP, cache
  )
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_array_equal(a, b)


def states_of(lm, sequence, first):
  document, vectors = sequence.document_BP, sequence.vectors_BPD
  cache = lm.model.init_cache(len(document), SLOTS)
  return stream(lm, vectors, document, first, cache)[0]


@variants
@pytest.mark.parametrize('first', [(0, 0, 0), (5, 11, 1), (9, 3, 2)])
def test_step_after_prefill_gives_what_the_whole_row_gives(
  mode, form, window, first
):
  lm, sequence = make(mode, 'rvq', form, window), make_sequence()
  want = lm.call(lm.variables, sequence)
  states = jnp.asarray(states_of(lm, sequence, first))
  is_real = np.asarray(sequence.document_BP >= 0)
  ends = lm.end_logits(lm.variables, states)
  np.testing.assert_allclose(
    ends[is_real], want.end_logits_BP[is_real], atol=1e-5
  )
  # Slots whose next one is of the same document.
  document = sequence.document_BP
  goes_on = np.array(document[:, 1:] == document[:, :-1])
  goes_on &= is_real[:, 1:]
  if mode == 'discrete':
    codes = sequence.codes_BP
    digits = jnp.stack([codes % 4, codes // 4 % 3, codes // 12], axis=-1)
    got = lm.code_logits(lm.variables, states[:, :-1], digits[:, 1:])
  else:
    got = (lm.next_vector(lm.variables, states[:, :-1]),)
  for a, b in zip(got, want.logits or (want.vectors_BPD,), strict=True):
    np.testing.assert_allclose(a[goes_on], b[:, 1:][goes_on], atol=1e-5)
