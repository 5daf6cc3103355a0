"""Codes of a dictionary, what they cost, and the text that comes back."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from abstractinator.evaluation import coded_rows
from abstractinator.inference import TrainedPyramid
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.runs.state import variables_of
from abstractinator.types import EOS_ID, Batch
from tests.helpers import tiny_run
from tests.helpers.generation_rows import without_ends
from tests.helpers.jitted import jit
from tests.helpers.tiny_dictionary import KNOWN, LEVEL, SIZE, filled, text
from tests.helpers.tiny_hierarchy import edited, louder, stream_config

ESCAPE = SIZE - 1
CODE_OF = {ids: code for code, ids in enumerate(sorted(KNOWN))}

CONFIGS = {
  'in parallel': lambda: edited(
    tiny_run.config(), LEVEL | {'segmentation.capacity_length': 1.0}
  ),
  'one by one': lambda: edited(
    tiny_run.config(context='window', ends='entropy'), LEVEL
  ),
  'a stream': lambda: stream_config(LEVEL),
}
forms = pytest.mark.parametrize('form', CONFIGS)


@functools.cache
def make(form):
  config = CONFIGS[form]()
  data = dataclasses.replace(config.data, sequence_length=64)
  config = dataclasses.replace(config, data=data)
  variables = louder(variables_of(tiny_run.random_state(config, 3)))
  return TrainedPyramid(config, filled(variables))


@pytest.mark.parametrize('form', ['in parallel', 'a stream'])
def test_codes_are_those_of_a_python_dictionary(form):
  pyramid = make(form)
  for seed in range(3):
    data = text(200, seed)
    codes = pyramid.encode(data).codes_N.tolist()
    segments = [*map(tuple, pyramid.segment(data)), (EOS_ID,)]
    want = [CODE_OF.get(ids, ESCAPE) for ids in segments]
    assert codes == want
    assert 0.1 < np.mean(np.array(codes) == ESCAPE) < 0.9


@forms
def test_known_segments_come_back_whatever_the_expander_says(form):
  pyramid = make(form)
  known = b'the cat and a dog and the dog and a cat and the dog '
  assert pyramid.decode(pyramid.encode(known)) == known
  # Its code ends a segment where no rule would.
  codes = pyramid.encode(b'the the dog ')
  codes_N = codes.codes_N.copy()
  codes_N[0] = CODE_OF[tuple(b'th')]
  codes = dataclasses.replace(codes, codes_N=codes_N)
  assert pyramid.decode(codes) == b'ththe dog '
  # What the expander makes of a segment that is not known moves no other.
  before, after = b'the cat and the ', b'dog and a cat '
  decoded = pyramid.decode(pyramid.encode(before + b'elk ' + after))
  assert decoded.startswith(before)
  assert decoded.endswith(after)
  assert decoded != before + b'elk ' + after


@forms
def test_ids_that_codes_spell_cost_nothing(form):
  pyramid = make(form)
  data = text(40)[:40]
  ids_BS = np.array([[*data, EOS_ID]], np.int32)
  zeros_BS = np.zeros_like(ids_BS)
  output = jit(pyramid._model.apply)(
    pyramid._variables, Batch(ids_BS, zeros_BS, zeros_BS[:, 0])
  )
  (level,) = output.levels
  segments = level.compressed.segments
  codes_S = level.compressed.quantized.codes_BP[0][segments.index_BS[0]]
  is_known_S = np.asarray(codes_S) != ESCAPE
  nats_S = np.asarray(level.expanded.nats_BS[0])
  assert 0.2 < is_known_S.mean() < 0.9
  assert (nats_S[is_known_S] == 0).all()
  assert (nats_S[~is_known_S] > 1e-3).all()
  best_S = np.asarray(level.expanded.best_BS[0])
  assert (best_S[is_known_S] == ids_BS[0][is_known_S]).all()
  if level.expanded.end_logits_BS is None:
    return
  says_S = np.asarray(level.expanded.end_logits_BS[0])[is_known_S]
  is_end_S = np.asarray(segments.is_end_BS[0])[is_known_S]
  assert (np.where(is_end_S, says_S, -says_S) > 20).all()


def test_codes_of_other_segments_spell_other_ids():
  pyramid = make('in parallel')
  data = text(60)[:60]
  ids_BS = np.array([[*data, EOS_ID]], np.int32)
  zeros_BS = np.zeros_like(ids_BS)
  batch = Batch(ids_BS, zeros_BS, zeros_BS[:, 0])
  rows = jit(
    functools.partial(
      coded_rows.code_rows,
      model=pyramid._model,
      substitutes=coded_rows.SUBSTITUTES,
      decode=False,
    )
  )(pyramid._variables, batch)
  bits = {name: float(bits_B[0]) for name, bits_B in rows.bits[0].items()}
  (level,) = rows.levels
  codes_S = np.asarray(level.codes_BU)[0][np.asarray(level.index_BS)[0]]
  num_known = int((codes_S != ESCAPE).sum())
  # A wrong id costs 30 nats; few are right by chance.
  wrong = 30 * BITS_PER_NAT
  assert bits['shuffled'] > bits['true'] + 0.3 * num_known * wrong
  # Without a code ids cost what the expander says.
  assert (
    bits['true'] + num_known
    < bits['zeroed']
    < bits['true'] + 0.3 * num_known * wrong
  )


@pytest.mark.parametrize(
  ('form', 'prompt', 'want', 'temperature'),
  [
    # Without a top LM the last code repeats.
    ('in parallel', b'the dog ', b'dog dog dog ', 30.0),
    pytest.param(
      *('one by one', b'the dog ', b'dog dog dog ', 30.0),
      marks=pytest.mark.nightly,
    ),
    # The code is one that spells what the prompt has of its word.
    ('a stream', b'the dog and the c', b'at ', 0.0),
  ],
)
def test_prompts_go_on_as_their_codes_spell(form, prompt, want, temperature):
  ((new,),) = make(form).generate(
    prompt, max_new_bytes=len(want), temperature=temperature
  )
  assert new == want


def test_generated_codes_are_those_that_a_whole_call_finds_likeliest():
  variables = without_ends(make('a stream')._variables)
  # Random heads prefer the escape, which tells no id.
  head = variables['params']['top_lm']['code_head']['logits_0']
  head['kernel'] = 3 * head['kernel']
  pyramid = TrainedPyramid(make('a stream').config, variables)
  prompts = [b'the cat and ', b'dog ', b'a cat xylo ']
  apply = jit(pyramid._model.apply)
  num_known = num_open = 0
  for prompt, (new,) in zip(
    prompts,
    pyramid.generate(prompts, max_new_bytes=52, temperature=0.0),
    strict=True,
  ):
    ids_BS = np.array([[*prompt, *new][:52]], np.int32)
    zeros_BS = np.zeros_like(ids_BS)
    output = apply(variables, Batch(ids_BS, zeros_BS, zeros_BS[:, 0]))
    likeliest = np.argmax(output.top_lm.logits[0][0], axis=-1)
    segments = output.levels[0].compressed.segments
    starts = np.flatnonzero(segments.is_start_BS[0])
    # The last segment may be cut short.
    for code, (start, stop) in zip(
      likeliest, itertools.pairwise(starts), strict=False
    ):
      if start >= len(prompt):
        num_open += code == ESCAPE
        if code != ESCAPE:
          assert CODE_OF[tuple(ids_BS[0, start:stop].tolist())] == code
          num_known += 1
  assert num_known > 8
  assert num_open > 4
