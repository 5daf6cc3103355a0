"""Rows continued with caches against whole teacher-forced calls.

A greedy row is one that whole calls say of every id, code and end of it, given
what stands before: a loop that calls on all ids so far for every next one
makes no other.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.ops import digits as digits_lib
from tests.helpers import generation_rows, tiny_pyramid
from tests.helpers.generation_rows import EOS, NO_NEXT_ID, Generator

LATENT = {'kv_dim': 6, 'query_dim': 5, 'retrieval_dim': 4}
MLA = {
  f'{part}.attention.{name}': value
  for part in ('entropy_model', 'encoder', 'expander')
  for name, value in {'form': 'mla', **LATENT}.items()
}
# Equal entropies that differ by rounding are no jump.
JUMPS = {'segmentation.rule': 'entropy_delta', 'segmentation.threshold': 0.1}


def level(context, ends='head', lookback=0, queries=1, **changes):
  return {
    **JUMPS,
    'expander.context': context,
    'expander.ends': ends,
    'expander.lookback': lookback,
    'pooling.num_queries': queries,
    **changes,
  }


WIRINGS = {
  'segment-head': (level('segment', lookback=1),),
  'full-head-mla': (level('full', **MLA),),
  'window-entropy-queries': (level('window', 'entropy', 2, 2),),
  'two-segment-entropy-mla-window': (
    level('segment', 'entropy', **MLA),
    level('window', lookback=1),
  ),
  'two-segment-rvq-full-mla': (
    level(
      'segment',
      queries=2,
      **{'quantizer.kind': 'rvq', 'quantizer.codebook_size': 4},
    ),
    level('full', **MLA),
  ),
}
# What else there is, at night.
FURTHER = {
  f'{len(above) + 1}-{context}-{ends}-{form}': (
    level(context, ends, **latent),
    *above,
  )
  for above in ((), (level('segment'),))
  for context in ('segment', 'window', 'full')
  for ends in ('head', 'entropy')
  for form, latent in (('regular', {}), ('mla', MLA))
}
# Two levels, both forms; `rows_test` has each context and end.
ALWAYS = ('two-segment-rvq-full-mla',)
SIZE, LIMIT, ROWS = 24, 64, 16
CAPACITY = SIZE + LIMIT
LENGTHS = [*range(1, SIZE, 2), 0, 8, 16, SIZE]


class Run:
  """Prompts and what became of them, greedily."""

  def __init__(self, config):
    self.model = tiny_pyramid.make_model(config)
    self.variables = generation_rows.without_ends(
      tiny_pyramid.make_variables(config)
    )
    self.generator = Generator(self.model, self.variables, SIZE, CAPACITY)
    self.prompts = generation_rows.prompts_of(LENGTHS)
    self.request = self.generator.request(ROWS, LIMIT)
    self.texts, self.extensions = self.generator.run(self.prompts, self.request)
    self.rows = self.generator.levels(self.prompts, self.extensions)


def pytest_generate_tests(metafunc):
  if 'run' in metafunc.fixturenames:
    further = [
      pytest.param(name, marks=pytest.mark.nightly)
      for name in (WIRINGS | FURTHER)
      if name not in ALWAYS
    ]
    metafunc.parametrize(
      'run', [*ALWAYS, *further], indirect=True, scope='module'
    )


@pytest.fixture(scope='module')
def run(request):
  levels = (WIRINGS | FURTHER)[request.param]
  return Run(tiny_pyramid.make_config(*levels))


def open_codes(run, row, number):
  """Codes of a prompt's open segment that a level is told of."""
  if number == 0:
    return 0
  below = run.rows[row][number - 1]
  is_open = below.num_known > sum(below.lengths[: below.num_whole])
  return int(is_open and run.generator.queries(number - 1) == 1)


def whole_expander(run, number):
  rows = [row[number] for row in run.rows]
  size = max(len(level.ids) for level in rows)
  codes = [[c for slot in level.codes for c in slot] for level in rows]
  width = size * run.generator.queries(number)
  return jax.device_get(
    generation_rows.whole_calls(run.model, number)(
      run.variables,
      generation_rows.make_batch([level.ids for level in rows], size),
      generation_rows.make_segments([level.lengths for level in rows], size),
      generation_rows.pad([of_row[:width] for of_row in codes], width),
    )
  )


def test_ids_and_ends_are_those_of_whole_calls(run):
  total = 0
  for number, config in enumerate(run.model.config.levels):
    output = whole_expander(run, number)
    for row, levels in enumerate(run.rows):
      level = levels[number]
      count, begin = len(level.ids), level.num_known
      if number == 0:
        logits = np.array(output.logits[0][row])
        logits[:, NO_NEXT_ID] = -np.inf
        best = logits.argmax(-1)
        total += count - begin
      else:
        best = output.best_BS[row]
      first = begin + open_codes(run, row, number)
      assert best[first:count].tolist() == level.ids[first:]
      if config.expander.ends == 'entropy':
        continue
      ends = np.zeros(count, bool)
      ends[np.cumsum(level.lengths) - 1] = True
      certain = output.end_is_certain_BS[row, :count]
      log_odds = output.end_logits_BS[row, :count]
      # The limit may have come before the last end.
      new = slice(begin, count - 1)
      assert ends[new].tolist() == ((log_odds > 0) | certain)[new].tolist()
  assert total >= 1000
  text = b''.join(run.texts)
  assert len(set(text)) > 8


def test_codes_are_handed_down(run):
  for levels in run.rows:
    for number, (below, above) in enumerate(itertools.pairwise(levels)):
      codes = [c for slot in below.codes for c in slot]
      queries = run.generator.queries(number)
      assert codes == above.ids[: len(codes)]
      assert len(above.ids) - len(codes) < queries
    # A byte of each code but the last few, which the limit cut off.
    assert len(levels[0].lengths) <= len(levels[0].codes)


def test_bytes_are_ids_up_to_eos_and_the_limit(run):
  for text, prompt, levels in zip(
    run.texts, run.prompts, run.rows, strict=True
  ):
    ids = levels[0].ids
    assert ids[: len(prompt)] == list(prompt)
    new = ids[len(prompt) :]
    if EOS in new:
      new = new[: new.index(EOS)]
    else:
      assert len(text) >= LIMIT
    assert new[: len(text)] == list(text)


def test_top_codes_are_those_of_a_whole_call(run):
  """But the first, where a segment was open."""
  tops = [row[-1] for row in run.rows]
  queries = run.generator.queries(len(run.model.config.levels) - 1)
  codes = [[c for slot in level.codes for c in slot] for level in tops]
  size = max(map(len, codes))
  document = np.where(
    np.arange(size) < np.array([[len(x)] for x in codes]), 0, -1
  )
  output = jax.device_get(
    generation_rows.whole_top(run.model)(
      run.variables, generation_rows.pad(codes, size), jnp.asarray(document)
    )
  )
  sizes = tuple(x.shape[-1] for x in output.logits)
  for row, level in enumerate(tops):
    best = [x[row].argmax(-1) for x in output.logits]
    best = np.asarray(digits_lib.compose(jnp.stack(best, -1), sizes))
    known, count = level.num_whole * queries, len(codes[row])
    is_open = any(
      x.num_known > sum(x.lengths[: x.num_whole]) for x in run.rows[row]
    )
    begin = known + queries * is_open
    assert best[begin:count].tolist() == codes[row][begin:]


def test_ends_by_entropy_are_those_of_the_finished_bytes(run):
  if run.model.config.levels[0].expander.ends != 'entropy':
    return
  ids = [levels[0].ids for levels in run.rows]
  size = max(map(len, ids))
  compressed = jax.device_get(
    run.generator.compress[0](
      run.variables, generation_rows.make_batch(ids, size), None
    )
  )
  for row, levels in enumerate(run.rows):
    count = len(levels[0].ids)
    (starts,) = np.nonzero(compressed.segments.is_start_BS[row, :count])
    assert np.diff([*starts, count]).tolist() == levels[0].lengths
