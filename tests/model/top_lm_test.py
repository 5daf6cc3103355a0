"""Top LM: which codes predictions read, documents, parameters, types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.top_lm import CodeSequenceTransformer
from tests.helpers import tiny_top_lm
from tests.helpers.implementations import XLA
from tests.helpers.jitted import jit
from tests.helpers.relative_error import relative_error
from tests.helpers.tiny_top_lm import (
  SLOTS,
  make,
  make_sequence,
  modes,
  variants,
)


def predictions(output):
  """Returns predictions of each slot, [B, P, X] each; ends come last."""
  codes = output.logits or (output.vectors_BPD,)
  return [np.asarray(x) for x in (*codes, output.end_logits_BP[..., None])]


def with_code(sequence, row, slot):
  """Returns a sequence with another code, and vector, in one slot."""
  other = make_sequence('rvq', seed=1)
  assert other.codes_BP[row, slot] != sequence.codes_BP[row, slot]
  return sequence.replace(
    codes_BP=sequence.codes_BP.at[row, slot].set(other.codes_BP[row, slot]),
    vectors_BPD=sequence.vectors_BPD.at[row, slot].set(
      other.vectors_BPD[row, slot]
    ),
  )


@variants
def test_a_code_is_read_by_what_follows_in_its_document(mode, form, window):
  lm, sequence = make(mode, 'rvq', form, window), make_sequence()
  out, here = lm.call(lm.variables, sequence), np.arange(SLOTS)
  for row, slot in ((0, 0), (0, 3), (0, 5), (1, 2), (1, 11)):
    changed = with_code(sequence, row, slot)
    other = lm.call(lm.variables, changed)
    moved = [
      np.any(a != b, axis=-1)
      for a, b in zip(predictions(other), predictions(out), strict=True)
    ]
    document = np.asarray(sequence.document_BP[row])
    reads = (here >= slot) & (document == document[slot])
    if window is not None:
      reads &= here <= slot + window
    # Codes are predicted from the state before them, ends from that after.
    after = np.append(False, reads[:-1]) & (document == document[slot])
    wants = [after] * len(moved[1:]) + [reads]
    if mode == 'discrete':
      # Later stages read the digits before them of the code itself.
      for stage, place in ((1, 4), (2, 12)):
        old, new = (x.codes_BP[row, slot] % place for x in (sequence, changed))
        wants[stage] = after | ((here == slot) & (old != new))
    is_real = np.asarray(sequence.document_BP >= 0)
    for got, want in zip(moved, wants, strict=True):
      got &= is_real
      np.testing.assert_array_equal(got[row], want)
      assert not np.delete(got, row, axis=0).any()


@modes
def test_the_first_code_of_every_document_is_predicted_from_nothing(mode):
  lm, sequence = make(mode, 'vq'), make_sequence('vq')
  output = lm.call(lm.variables, sequence)
  first = (output.logits or (output.vectors_BPD,))[0][
    jnp.array([0, 0, 0, 1, 1, 2]), jnp.array([0, 3, 4, 0, 7, 0])
  ]
  np.testing.assert_array_equal(first, first[:1].repeat(6, axis=0))
  state = lm.model.apply(lm.variables, 2, method='start_state')
  if mode == 'discrete':
    (begin,) = lm.code_logits(lm.variables, state, jnp.zeros((2, 1), int))
  else:
    begin = lm.next_vector(lm.variables, state)
  np.testing.assert_allclose(begin[0], first[0], atol=1e-6)


@modes
@pytest.mark.parametrize(
  'form', ['regular', pytest.param('mla', marks=pytest.mark.nightly)]
)
def test_empty_slots_change_nothing(mode, form):
  """Their number, their content and their predictions do not matter."""
  lm, sequence = make(mode, 'rvq', form), make_sequence()
  other = make_sequence(seed=3)
  is_real = sequence.document_BP >= 0
  filled = sequence.replace(
    codes_BP=jnp.where(is_real, sequence.codes_BP, other.codes_BP),
    vectors_BPD=jnp.where(
      is_real[..., None], sequence.vectors_BPD, 9 * other.vectors_BPD
    ),
    is_end_BP=sequence.is_end_BP | ~is_real,
  )
  short = jax.tree.map(lambda x: x[2:, :2], filled)

  want, want_grads = lm.loss_and_gradients(lm.variables, sequence)
  got, grads = lm.loss_and_gradients(lm.variables, filled)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for a, b in zip(*map(jax.tree.leaves, (grads, want_grads)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  for a, b in zip(
    predictions(lm.call(lm.variables, short)),
    predictions(lm.call(lm.variables, sequence)),
    strict=True,
  ):
    np.testing.assert_allclose(a, b[2:, :2], atol=1e-6)


@modes
def test_rows_and_documents_do_not_depend_on_their_company(mode):
  """A document alone costs what it costs within a row."""
  lm, sequence = make(mode), make_sequence()
  whole = lm.terms(lm.variables, sequence)
  parts = []
  for row, lengths in enumerate(tiny_top_lm.LENGTHS):
    for number in range(len(lengths)):
      slots = np.flatnonzero(sequence.document_BP[row] == number)
      order = np.append(slots, np.delete(np.arange(SLOTS), slots))
      alone = jax.tree.map(lambda x, r=row, o=order: x[r : r + 1, o], sequence)
      kept = jnp.arange(SLOTS) < len(slots)
      alone = alone.replace(document_BP=jnp.where(kept, 5, -1)[None])
      parts.append(lm.terms(lm.variables, alone))
  for name, total in whole.items():
    np.testing.assert_allclose(
      sum(part[name] for part in parts), total, rtol=1e-5
    )


def test_a_mode_has_no_predictions_of_the_other():
  lm = make('continuous', 'rvq')
  state = jnp.zeros((1, tiny_top_lm.WIDTH))
  with pytest.raises(ValueError, match="'discrete', allowed: 'continuous'"):
    make().model.apply(make().variables, state, method='next_vector')
  assert lm.call(lm.variables, make_sequence()).logits is None
  output = make().call(make().variables, make_sequence())
  assert output.vectors_BPD is None


def test_parameters_by_path():
  def shapes(lm):
    flat = jax.tree_util.tree_leaves_with_path(lm.variables['params'])
    return {
      '/'.join(key.key for key in path): x.shape
      for path, x in flat
      if path[0].key != 'stack'
    }

  common = {
    'project/kernel': (6, 16),
    'start': (16,),
    'end_head/kernel': (16, 1),
  }
  assert shapes(make('continuous')) == common | {'vector_head/kernel': (16, 6)}
  assert shapes(make('discrete')) == common | {
    'code_head/told_0/embedding': (4, 16),
    'code_head/told_1/embedding': (3, 16),
    'code_head/mix_1/kernel': (16, 16),
    'code_head/mix_2/kernel': (16, 16),
    'code_head/logits_0/kernel': (16, 4),
    'code_head/logits_1/kernel': (16, 3),
    'code_head/logits_2/kernel': (16, 5),
  }


def test_predictions_are_float32_whatever_the_compute_type():
  lm, sequence = make('discrete', 'rvq'), make_sequence()
  args = {
    name: getattr(lm.model, name)
    for name in ('config', 'd_level', 'stage_sizes', 'forbidden')
  }
  model = CodeSequenceTransformer(
    **args, implementation=XLA, dtype=jnp.bfloat16
  )
  output = jit(model.apply)(lm.variables, sequence)
  found = jax.tree.leaves(output.replace(states_BPY=None))
  assert {x.dtype for x in found} == {jnp.dtype('float32')}
  want = lm.call(lm.variables, sequence)
  is_real = np.asarray(sequence.document_BP >= 0)
  for a, b in zip(predictions(output), predictions(want), strict=True):
    assert relative_error(a[is_real], b[is_real]) < 0.015
  assert model.init_cache(2, 5).layers[0].key_BGWA.dtype == jnp.bfloat16
