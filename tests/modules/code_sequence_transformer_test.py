"""The top LM: what reads what, streaming, distributions, gradients."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstractinator import top_lm_losses, top_lm_metrics
from abstractinator.modules.code_sequence_transformer import (
  CodeSequence,
  CodeSequenceTransformer,
)
from tests import tiny_top_lm
from tests.implementations import XLA
from tests.jitted import jit
from tests.tiny_top_lm import SIZES, SLOTS, make, make_sequence

modes = pytest.mark.parametrize('mode', ['discrete', 'continuous'])
kinds = pytest.mark.parametrize('kind', list(SIZES))
forms = pytest.mark.parametrize('form', ['regular', 'mla'])
# All pairs of settings; all triples at night.
_PAIRS = (
  ('discrete', 'regular', None),
  ('continuous', 'mla', None),
  ('discrete', 'mla', tiny_top_lm.WINDOW),
  ('continuous', 'regular', tiny_top_lm.WINDOW),
)
variants = pytest.mark.parametrize(
  ('mode', 'form', 'window'),
  [
    pytest.param(*x, marks=[] if x in _PAIRS else [pytest.mark.nightly])
    for x in itertools.product(
      ('discrete', 'continuous'),
      ('regular', 'mla'),
      (None, tiny_top_lm.WINDOW),
    )
  ],
)


def predictions(output):
  """What is predicted of each slot, [B, P, X] each; the ends come last."""
  codes = output.logits or (output.vectors_BPD,)
  return [np.asarray(x) for x in (*codes, output.end_logits_BP[..., None])]


def with_code(sequence, row, slot):
  """Another code, and vector, in one slot."""
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
    # The state after a code says what comes next.
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
  """Neither more of them, nor what is in them, nor predictions of them."""
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


class Owner(nn.Module):
  """A module with a top LM of its own."""

  top: CodeSequenceTransformer

  def __call__(self, sequence):
    cache = self.top.init_cache(len(sequence.codes_BP), SLOTS)
    return self.top.prefill(sequence.vectors_BPD, sequence.document_BP, cache)


@forms
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


def stream(lm, sequence, first):
  """States of codes, `first` of each row prefilled and the others stepped."""
  position = np.asarray(first)
  length = np.asarray((sequence.document_BP >= 0).sum(1))
  document, vectors = sequence.document_BP, sequence.vectors_BPD
  begin = np.arange(SLOTS) < position[:, None]
  rows = np.arange(len(length))
  states, cache = lm.prefill(
    lm.variables,
    vectors,
    jnp.where(begin, document, -1),
    lm.model.init_cache(len(length), SLOTS),
  )
  states = np.array(states)
  while (position < length).any():
    active = position < length
    at = np.minimum(position, SLOTS - 1)
    state, cache = lm.step(
      lm.variables, vectors[rows, at], document[rows, at], cache, active
    )
    states[rows[active], at[active]] = state[active]
    position = position + active
  return states


@variants
@pytest.mark.parametrize('first', [(0, 0, 0), (5, 11, 1), (9, 3, 2)])
def test_step_after_prefill_gives_what_the_whole_row_gives(
  mode, form, window, first
):
  lm, sequence = make(mode, 'rvq', form, window), make_sequence()
  want = lm.call(lm.variables, sequence)
  states = jnp.asarray(stream(lm, sequence, first))
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


def all_codes(sizes):
  """Digits of every code, [X, M]."""
  return jnp.array(list(itertools.product(*map(range, sizes))), jnp.int32)


@kinds
def test_probabilities_of_all_codes_add_up_to_one(kind):
  lm = make('discrete', kind)
  states = jax.random.normal(jax.random.key(3), (5, 1, tiny_top_lm.WIDTH))
  digits = all_codes(lm.sizes)
  shape = (5, *digits.shape)
  logits = lm.code_logits(
    lm.variables,
    jnp.broadcast_to(states, (*shape[:2], tiny_top_lm.WIDTH)),
    jnp.broadcast_to(digits, shape),
  )
  log_p = sum(
    jnp.take_along_axis(
      jax.nn.log_softmax(x), jnp.broadcast_to(digits, shape)[..., m, None], -1
    )[..., 0]
    for m, x in enumerate(logits)
  )
  p = np.exp(log_p)
  np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
  is_allowed = ~np.isin(digits[:, 0], tiny_top_lm.FORBIDDEN.get(kind, ()))
  assert (p[:, ~is_allowed] == 0).all()
  assert (p[:, is_allowed] > 0).all()
  # It says something, and not the same of every state.
  assert p.max() > 3 / is_allowed.sum()
  assert np.abs(p[0] - p[1]).max() > 0.05


def test_what_a_digit_says_of_the_next_depends_on_the_state():
  """Log odds of two digits and of two before them do not merely add up."""
  lm = make('discrete', 'rvq')
  states = jax.random.normal(jax.random.key(3), (6, 1, tiny_top_lm.WIDTH))
  states = jnp.broadcast_to(states, (6, 2, tiny_top_lm.WIDTH))
  digits = jnp.broadcast_to(jnp.array([[0, 0, 0], [1, 0, 0]]), (6, 2, 3))
  odds = lm.code_logits(lm.variables, states, digits)[1]
  odds = odds[..., 0] - odds[..., 1]
  assert np.std(odds[:, 0] - odds[:, 1]) > 0.05


def test_probabilities_of_all_documents_add_up_to_one():
  """With their ends: of up to three codes, and of what is longer."""
  lm = make('discrete', 'forbidden')
  vectors = np.random.default_rng(7).normal(size=(16, tiny_top_lm.D_LEVEL))
  allowed = [c for c in range(16) if c % 4 not in (1, 3)]
  total = 0.0
  for length in (1, 2, 3):
    codes = np.array(list(itertools.product(allowed, repeat=length)))
    extra = ((0, 512 - len(codes)), (0, 3 - length))
    document = np.pad(np.zeros_like(codes), extra, constant_values=-1)
    codes = np.pad(codes, extra)
    sequence = CodeSequence(
      codes_BP=jnp.asarray(codes, jnp.int32),
      vectors_BPD=jnp.asarray(vectors[codes], jnp.float32),
      document_BP=jnp.asarray(document, jnp.int32),
      is_end_BP=jnp.broadcast_to(jnp.arange(3) == length - 1, codes.shape),
    )
    output = lm.call(lm.variables, sequence)

    def p(is_end, output=output, codes=codes, is_real=document >= 0):
      nats = top_lm_losses.code_nats(output, codes)
      nats += top_lm_losses.end_nats(output, is_end)
      nats = np.where(is_real, nats, 0).sum(1)
      return np.exp(-nats[is_real[:, 0]]).sum()

    total += p(sequence.is_end_BP)
  longer = p(jnp.zeros((512, 3), bool))
  assert longer > 0.01
  assert total > 0.1
  np.testing.assert_allclose(total + longer, 1, rtol=1e-5)


@kinds
def test_the_first_loss_is_that_of_a_uniform_guess(kind):
  lm, sequence = make('discrete', kind), make_sequence(kind)
  terms = lm.terms(lm.initial, sequence)
  count = float((sequence.document_BP >= 0).sum())
  codes = np.prod(lm.sizes) // (2 if kind == 'forbidden' else 1)
  np.testing.assert_allclose(
    terms['top_lm_code'] / count, np.log(codes), rtol=0.03
  )
  # A logit of 0.1 costs 0.05, where it is always wrong.
  np.testing.assert_allclose(terms['top_lm_end'] / count, np.log(2), atol=0.05)
  assert terms['top_lm_vector'] == 0


@modes
def test_no_gradient_reaches_inputs_and_targets(mode):
  lm, sequence = make(mode), make_sequence()

  def run(vectors):
    return lm.loss(lm.variables, sequence.replace(vectors_BPD=vectors))

  run, gradient = jit(run), jit(jax.grad(run))
  assert not np.any(gradient(sequence.vectors_BPD))
  moved = run(sequence.vectors_BPD.at[0, 1].add(0.5))
  assert abs(moved - run(sequence.vectors_BPD)) > 1e-3


@pytest.mark.parametrize(
  ('mode', 'form'),
  [
    ('discrete', 'mla'),
    ('continuous', 'regular'),
    # Of modes and forms both are in those above.
    pytest.param('discrete', 'regular', marks=pytest.mark.nightly),
    pytest.param('continuous', 'mla', marks=pytest.mark.nightly),
  ],
)
def test_gradients_hold_numerically(mode, form):
  """Along one direction, in which every parameter takes part."""
  lm, sequence = make(mode, 'rvq', form), make_sequence()
  rng = np.random.default_rng(6)
  direction = jax.tree.map(
    lambda x: jnp.float32(0.1 * rng.normal(size=x.shape)), lm.initial
  )

  def both(variables, direction):
    def at(distance):
      moved = jax.tree.map(lambda x, d: x + distance * d, variables, direction)
      return lm.loss(moved, sequence)

    grads = jax.grad(lm.loss)(variables, sequence)
    products = jax.tree.map(jnp.vdot, grads, direction)
    return (
      sum(jax.tree.leaves(products)),
      (at(1e-2) - at(-1e-2)) / 2e-2,
      jax.tree.map(lambda x: jnp.abs(x).max(), grads),
    )

  got, want, sizes = jit(both)(lm.initial, direction)
  assert abs(want) > 0.1
  np.testing.assert_allclose(got, want, rtol=5e-3)
  assert min(jax.tree.leaves(sizes)) > 0


def test_sampled_codes_follow_their_distribution():
  """The joint frequencies of codes of equal stages are those of the model."""
  lm, draws = make('discrete', 'forbidden'), 40000
  state = jax.random.normal(jax.random.key(1), (tiny_top_lm.WIDTH,))
  digits = all_codes(lm.sizes)
  logits = lm.code_logits(
    lm.variables, jnp.broadcast_to(state, (16, tiny_top_lm.WIDTH)), digits
  )
  p = np.ones(16)
  for m, x in enumerate(logits):
    p *= np.asarray(jax.nn.softmax(x))[np.arange(16), np.asarray(digits[:, m])]
  codes = jit(lm.model.apply, method='next_code')(
    lm.variables,
    jax.random.key(4),
    jnp.broadcast_to(state, (draws, tiny_top_lm.WIDTH)),
  )
  order = np.asarray(digits[:, 0] + 4 * digits[:, 1])
  found = np.bincount(codes, minlength=16)[order] / draws
  np.testing.assert_allclose(found, p, atol=0.015)
  assert (found[p == 0] == 0).all()


def test_filters_act_on_every_stage():
  lm = make('discrete', 'rvq')
  states = jax.random.normal(jax.random.key(2), (200, tiny_top_lm.WIDTH))

  def draw(seed, **filters):
    apply = jit(lm.model.apply, method='next_code', **filters)
    return np.asarray(apply(lm.variables, jax.random.key(seed), states))

  greedy = draw(0, temperature=0.0)
  np.testing.assert_array_equal(draw(1, temperature=0.0), greedy)
  np.testing.assert_array_equal(draw(1, top_k=1), greedy)
  np.testing.assert_array_equal(draw(1, top_p=1e-6), greedy)
  np.testing.assert_array_equal(draw(1, min_p=1.0), greedy)
  assert (draw(1) != greedy).mean() > 0.3
  # Digit by digit the best one, given those before it.
  digits = jnp.stack([greedy % 4, greedy // 4 % 3, greedy // 12], axis=-1)
  for m, logits in enumerate(lm.code_logits(lm.variables, states, digits)):
    np.testing.assert_array_equal(logits.argmax(-1), digits[:, m])


def test_a_mode_has_no_predictions_of_the_other():
  lm = make('continuous', 'rvq')
  state = jnp.zeros((1, tiny_top_lm.WIDTH))
  with pytest.raises(ValueError, match="'continuous', allowed: discrete"):
    lm.model.apply(lm.variables, jax.random.key(0), state, method='next_code')
  with pytest.raises(ValueError, match="'discrete', allowed: continuous"):
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
  output = jit(model.apply)(lm.initial, sequence)
  assert {x.dtype for x in jax.tree.leaves(output)} == {jnp.dtype('float32')}
  want = lm.call(lm.initial, sequence)
  is_real = sequence.document_BP >= 0
  np.testing.assert_allclose(
    output.end_logits_BP[is_real], want.end_logits_BP[is_real], atol=0.02
  )
  assert model.init_cache(2, 5).layers[0].key_BWGA.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'kind', [pytest.param('vq', marks=pytest.mark.nightly), 'rvq']
)
def test_a_deterministic_sequence_is_learned(kind):
  """Each document repeats a cycle from a place that its first code tells."""
  lm = make('discrete', kind)
  num_codes = int(np.prod(lm.sizes))
  rng = np.random.default_rng(0)
  cycle = rng.permutation(num_codes)[:9]
  vectors = np.random.default_rng(7).normal(
    size=(num_codes, tiny_top_lm.D_LEVEL)
  )
  # All documents have four codes, three a row; the first is left to chance.
  begin = np.arange(9).reshape(3, 3)
  codes = cycle[(begin[..., None] + np.arange(4)) % 9].reshape(3, 12)
  sequence = make_sequence().replace(
    codes_BP=jnp.asarray(codes, jnp.int32),
    vectors_BPD=jnp.asarray(vectors[codes], jnp.float32),
    document_BP=jnp.broadcast_to(jnp.arange(12) // 4, (3, 12)),
    is_end_BP=jnp.broadcast_to(jnp.arange(12) % 4 == 3, (3, 12)),
  )
  optimizer = optax.adam(1e-2)

  def step(carry, _):
    variables, state = carry
    loss, grads = jax.value_and_grad(lm.loss)(variables, sequence)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(variables, updates), state), loss

  def train(variables):
    return jax.lax.scan(
      step, (variables, optimizer.init(variables)), None, length=150
    )

  (variables, _), _ = jit(train)(lm.initial)
  output = lm.call(variables, sequence)
  terms = lm.terms(variables, sequence)
  is_told = np.arange(12) % 4 > 0
  nats = np.asarray(top_lm_losses.code_nats(output, sequence.codes_BP))
  assert nats[:, is_told].mean() < 0.01
  np.testing.assert_allclose(nats[:, ~is_told].mean(), np.log(9), rtol=0.02)
  found = top_lm_metrics.discrete_metrics(output, sequence, terms)
  assert found['top_lm_end_accuracy'].total == 36
  assert found['top_lm_code_accuracy'].total >= 27 + 1
  assert found['top_lm_code_accuracy_last'].total == 9
  # And it goes on by itself, to the end.
  state, cache = lm.prefill(
    variables,
    sequence.vectors_BPD[:, :1],
    sequence.document_BP[:, :1],
    lm.model.init_cache(3, SLOTS),
  )
  state = state[:, 0]
  greedy = jit(lm.model.apply, method='next_code', temperature=0.0)
  for slot in range(1, 4):
    assert (lm.end_logits(variables, state) < 0).all()
    code = greedy(variables, jax.random.key(0), state)
    np.testing.assert_array_equal(code, codes[:, slot])
    state, cache = lm.step(
      variables,
      jnp.asarray(vectors, jnp.float32)[code],
      jnp.zeros(3, jnp.int32),
      cache,
      np.ones(3, bool),
    )
  assert (lm.end_logits(variables, state) > 0).all()
