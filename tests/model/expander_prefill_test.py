"""Steps of an expander after a prefill against whole rows."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.transformer import StepCodes
from abstractinator.types import BOS_ID, EOS_ID
from tests.helpers.jitted import jit
from tests.model.expander_test import LATENT

ROWS, SIZE = 3, 24
MLA = {'expander__attention__form': 'mla', **LATENT}
# Context, lookback, other settings.
WIRINGS = {
  'segment': ('segment', 0, {}),
  'segment-mla': ('segment', 2, MLA),
  'window': ('window', 2, {}),
  'full': ('full', 1, {}),
  'full-mla': ('full', 0, MLA),
  'full-queries': ('full', 1, {'pooling__num_queries': 2}),
}


def make_rows():
  """Rows of different length, the first with two documents."""
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 256, (ROWS, SIZE))
  document = np.zeros((ROWS, SIZE), int)
  ids[0, 9], document[0, 10:] = EOS_ID, 1
  length = np.array([SIZE, 20, 11])
  document = np.where(np.arange(SIZE) < length[:, None], document, -1)
  row = np.arange(ROWS)
  return [jnp.asarray(x, jnp.int32) for x in (ids, document, row)], length


@pytest.mark.parametrize(
  'wiring',
  [
    # Each context, form and number of codes; the others are made of these.
    'segment-mla',
    'window',
    'full-queries',
    *(
      pytest.param(name, marks=pytest.mark.nightly)
      for name in ('segment', 'full', 'full-mla')
    ),
  ],
)
def test_steps_after_a_prefill_give_the_states_of_the_row(tiny_level, wiring):
  context, lookback, changes = WIRINGS[wiring]
  level = tiny_level(
    expander__context=context, expander__lookback=lookback, **changes
  )
  batch, length = make_rows()
  run = jit(level.model.apply, method=_whole_and_stepped)
  for cut in (0, 7, 12):
    cut_B = np.minimum(cut, length - 2)
    whole, stepped = run(level.variables, *batch, cut_B)
    real = np.asarray(batch[1]) >= 0
    np.testing.assert_allclose(stepped[real], whole[real], atol=1e-5)
    assert np.abs(whole[real]).max() > 0.5


@pytest.mark.parametrize('context', ['segment', 'window', 'full'])
def test_an_id_beyond_the_capacity_is_no_number(tiny_level, context):
  """NaN with context 'full' only, and only in the row that is full."""
  level = tiny_level(expander__context=context)
  batch, _ = make_rows()
  run = jit(level.model.apply, method=_step_into_full_caches)
  out = run(level.variables, *batch)
  is_beyond = np.array([False, True, False]) & (context == 'full')
  np.testing.assert_array_equal(np.isnan(out).all(1), is_beyond)
  np.testing.assert_array_equal(np.isnan(out).any(1), is_beyond)


def _step_into_full_caches(model, ids, document, row):
  """Adds an id to each row: one too many in the second, none in the third."""
  compressed, expander = model.compressor(ids, document, row), model.expander
  memory = compressed.quantized.vectors_BPD
  _, cache = expander.prefill(
    *(ids, document, compressed.segments, memory),
    expander.init_cache(ROWS, SIZE),
  )
  length_B = jnp.array([SIZE - 1, SIZE, SIZE])
  cache = dataclasses.replace(cache, length_B=length_B)
  zero = jnp.zeros(ROWS, jnp.int32)
  own = StepCodes(expander.remember(memory), zero[:, None], zero[:, None])
  active = jnp.array([True, True, False])
  return expander.step(ids[:, 0], zero, zero, cache, active, own)[0]


@pytest.mark.parametrize('context', ['segment', 'window', 'full'])
def test_rows_longer_than_the_capacity_are_refused(tiny_level, context):
  level = tiny_level(expander__context=context)

  def prefill(model, ids, document, row):
    compressed = model.compressor(ids, document, row)
    return model.expander.prefill(
      *(ids, document, compressed.segments, compressed.quantized.vectors_BPD),
      model.expander.init_cache(ROWS, 15),
    )

  def run():
    args = (level.variables, *make_rows()[0])
    jax.eval_shape(lambda *x: level.model.apply(*x, method=prefill), *args)

  if context != 'full':
    run()
    return
  with pytest.raises(ValueError, match=r'24 ids, allowed: .* \(15\)'):
    run()


def _whole_and_stepped(model, ids, document, row, cut_B):
  """Returns states of whole rows, and of steps after a prefill of prefixes."""
  compressed, expander = model.compressor(ids, document, row), model.expander
  segments, memory = compressed.segments, compressed.quantized.vectors_BPD
  cache = expander.init_cache(ROWS, SIZE)
  remembered = expander.remember(memory)
  whole, _ = expander.prefill(ids, document, segments, memory, cache)
  is_in = jnp.arange(SIZE) < cut_B[:, None]
  states, cache = expander.prefill(
    # Ids that are still to come are not read.
    jnp.where(is_in, ids, 99),
    jnp.where(is_in, document, -1),
    jax.tree.map(
      lambda x: jnp.where(is_in, x, -1) if x.ndim == 2 else x, segments
    ),
    memory,
    cache,
  )
  is_alone = expander.is_alone
  starts = segments.is_start_BS if is_alone else _starts(document)
  fed = jnp.where(starts, BOS_ID, jnp.roll(ids, 1, axis=1))
  group = segments.index_BS if is_alone else document
  lowest = _lowest(segments, document)

  def step(expander, carry, _):
    states, cache, number = carry
    at = jnp.minimum(number, SIZE - 1)
    active = (number < SIZE) & (document[row, at] >= 0)
    state, cache = expander.step(
      fed[row, at],
      segments.offset_BS[row, at],
      group[row, at],
      cache,
      active,
      StepCodes(
        remembered, segments.index_BS[row, at, None], lowest[row, at, None]
      ),
    )
    kept = states.at[row, jnp.where(active, at, SIZE)].set(state, mode='drop')
    return (kept, cache, number + 1), None

  (states, _, _), _ = nn.scan(
    step, variable_broadcast='params', split_rngs={'params': False}
  )(expander, (states, cache, cut_B), jnp.arange(SIZE))
  return whole, states


def _starts(document):
  return (
    jnp.pad(document[:, 1:] != document[:, :-1], ((0, 0), (1, 0)))
    .at[:, 0]
    .set(True)
  )


def _lowest(segments, document):
  """Returns the first slot of each id's document, [B, S]."""
  first = jnp.where(_starts(document), segments.index_BS, -1)
  return jax.lax.cummax(first, axis=1)
