"""Top codes that are predicted while their level decodes.

What the loop with caches does of each id, a whole teacher-forced call on the
decoded bytes says as well.
"""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.decoding.prompt import below_of
from abstractinator.decoding.state import Request
from abstractinator.evaluation.coded_rows import code_levels
from abstractinator.model import pyramid as pyramid_lib
from abstractinator.objective import losses
from abstractinator.ops import code_rows, segmentation
from abstractinator.types import Batch, Segments
from tests.helpers import tiny_pyramid
from tests.helpers.generation_rows import filters, without_ends
from tests.helpers.jitted import jit

JUMPS = {'segmentation.rule': 'entropy_delta', 'segmentation.threshold': 0.1}
BASE = {
  **JUMPS,
  'expander.base': 'entropy_model',
  'expander.ends': 'entropy',
  'expander.conditioning': 'top_lm',
}
SEGMENTS = {'inputs': 'segments', 'base': 'entropy_model'}
# Settings of the levels, and of the top LM.
WIRINGS = {
  'all': ((BASE | {'expander.context': 'window'},), SEGMENTS),
  'alone': (
    (BASE | {'expander.context': 'segment', 'encoder_context': 'segment'},),
    SEGMENTS,
  ),
  'codes': (
    (
      JUMPS
      | {
        'expander.conditioning': 'top_lm',
        'expander.context': 'full',
        'expander.ends': 'entropy',
      },
    ),
    {},
  ),
  'rvq': (
    (BASE | {'quantizer.kind': 'rvq', 'quantizer.codebook_size': 4},),
    {'inputs': 'segments'},
  ),
  'two': (
    (
      BASE | {'expander.conditioning': 'none'},
      JUMPS | {'expander.conditioning': 'top_lm'},
    ),
    {'inputs': 'segments'},
  ),
}
FURTHER = ('all', 'alone', 'codes', 'rvq')
SIZE = 24


def make(name):
  """Returns the pyramid of a wiring, all of whose paths matter."""
  levels, top = WIRINGS[name]
  config = tiny_pyramid.make_config(*levels, top=top)
  rng = np.random.default_rng(1)

  def filled(x):
    if x.ndim and not np.any(x):
      return jnp.asarray(rng.normal(size=x.shape) / 4, x.dtype)
    return x

  variables = tiny_pyramid.make_variables(config)
  params = jax.tree.map(filled, variables['params'])
  variables = without_ends({**variables, 'params': params})
  return tiny_pyramid.make_model(config), variables


def segments_of(lengths_P, size):
  """Returns the division of a row into segments of given lengths."""
  ends = np.cumsum(lengths_P)
  at = np.arange(size)
  index = np.searchsorted(ends, at, side='right')
  offset = at - (ends - lengths_P)[index]
  return Segments(
    index_BS=index,
    is_start_BS=offset == 0,
    is_end_BS=offset + 1 == np.asarray(lengths_P)[index],
    offset_BS=offset,
    count_B=np.int32(len(lengths_P)),
    is_capacity_bound_BS=np.zeros(size, bool),
  )


def whole_call(model, variables, ids_S, lengths_P, codes_P):
  """Computes the likeliest ids of one teacher-forced call of the top level.

  Args:
    model: The pyramid.
    variables: Its variables.
    ids_S: Ids of the top level, [S] int.
    lengths_P: Number of ids of each segment, [P] int.
    codes_P: Codes of the segments, [P] int.

  Returns:
    The most likely ids that may be next ids, [S] int.
  """
  number = len(model.config.levels) - 1
  size = len(ids_S)
  zeros = jnp.zeros((1, size), jnp.int32)
  batch = Batch(jnp.asarray(ids_S, jnp.int32)[None], zeros, zeros[:, 0])
  segments = jax.tree.map(
    lambda x: jnp.asarray(x)[None], segments_of(lengths_P, size)
  )
  codes_BP = np.zeros((1, size), np.int32)
  codes_BP[0, : len(codes_P)] = codes_P

  def run(pyramid, batch, codes_BP):
    level = pyramid.levels[-1]
    below = below_of(pyramid, number, batch.ids_BS)
    with mock.patch.object(segmentation, 'segment', return_value=segments):
      compressed = level.compress(batch, below)
    slots = compressed.is_valid_BP.shape[1]
    vectors = level.compressor.quantizer.lookup(codes_BP[:, :slots])
    sequence = pyramid_lib.code_sequence(
      compressed, batch, jnp.zeros(batch.ids_BS.shape, bool), 1
    )
    predicted = pyramid.top_lm(
      dataclasses.replace(sequence, vectors_BPD=vectors)
    )
    books = None if below is None else below.codebooks
    return level.expand(
      batch,
      compressed,
      books,
      vectors_BUD=vectors,
      states_BUY=predicted.states_BPY,
    )

  expanded = jit(model.apply, method=run)(variables, batch, codes_BP)
  sizes = [logits.shape[-1] for logits in expanded.logits]
  assert len(sizes) == 1, 'ids of one digit'
  num_next = 257 if number == 0 else sizes[0] - 3
  return np.argmax(expanded.logits[0][0, :, :num_next], axis=-1)


@pytest.mark.parametrize(
  'name',
  ['two', *(pytest.param(x, marks=pytest.mark.nightly) for x in FURTHER)],
)
def test_codes_decode_to_the_ids_that_a_whole_call_finds_likeliest(name):
  model, variables = make(name)
  rng = np.random.default_rng(2)
  num_codes = model.config.levels[-1].quantizer.num_codes
  slots = model.config.num_top_codes(SIZE)
  codes = jnp.asarray(rng.integers(0, num_codes, (1, slots)), jnp.int32)

  def decode(pyramid, codes):
    rows = code_rows.top_rows(
      codes, jnp.ones((1, slots), bool), jnp.zeros((1, slots), jnp.int32)
    )
    return pyramid.decode_top(rows, SIZE)

  ids_BPL, length_BP = jit(model.apply, method=decode)(variables, codes)
  # The end of the row cuts the last segment short.
  length_P = np.asarray(length_BP[0])
  count = int(np.sum(length_P > 0)) - 1
  assert count > 3
  length_P = length_P[:count]
  ids = np.concatenate([ids_BPL[0, p, :n] for p, n in enumerate(length_P)])
  found = whole_call(model, variables, ids, length_P, codes[0, :count])
  np.testing.assert_array_equal(found, ids)


@functools.cache
def generator(model):
  """Returns the program that continues prompts, compiled once a model."""
  return jit(
    model.apply,
    method=lambda m, *args: m.generate_bytes(*args, max_new_bytes=40),
  )


def continued(model, variables, prompt, count, temperature=0.0):
  """Returns `count` new bytes after a prompt, as one row among two."""
  ids = np.zeros((2, SIZE), np.int32)
  ids[1, : len(prompt)] = prompt
  request = Request(
    key_B=jax.random.split(jax.random.key(0), 2),
    # Random parameters draw the end of a document half of the time.
    top=filters(2),
    levels=filters(2, temperature=temperature),
    limit_B=jnp.full(2, count),
  )
  counts = jnp.array([0, len(prompt)])
  new_BN, num_B = generator(model)(variables, jnp.asarray(ids), counts, request)
  assert num_B[1] == count
  return [*map(int, new_BN[1, :count])]


@pytest.mark.nightly
def test_a_text_goes_on_as_if_its_beginning_had_been_a_prompt():
  """Prompts that end with a segment, and one that ends within one.

  Segments that stand alone do not see the codes of those before them, so that
  it does not matter which code a prompt's segments have.
  """
  model, variables = make('alone')
  begin = [7, 200]
  text = begin + continued(model, variables, begin, 30)
  levels = code_levels(
    variables,
    Batch(jnp.asarray(text)[None], jnp.zeros((1, 32), int), jnp.zeros(1, int)),
    model=model,
  )
  starts = np.flatnonzero(np.diff(levels[0].index_BS[0], prepend=-1))
  starts = [int(x) for x in starts if len(begin) < x < 20]
  assert len(starts) > 2
  for start in starts:
    found = continued(model, variables, text[:start], 10)
    assert found == text[start : start + 10], start


def test_drawn_texts_do_not_depend_on_what_is_beside_them():
  model, variables = make('all')
  text = continued(model, variables, [3, 4, 5], 20, temperature=1.0)
  other = continued(model, variables, [3, 4, 5], 12, temperature=1.0)
  assert other == text[:12]
  assert len(set(text)) > 4


def test_the_top_lm_moves_no_entropy_model_that_it_builds_on():
  model, variables = make('all')
  batch = tiny_pyramid.make_batch([[(23, 0), (12, 1)]], 40)
  rest = {k: v for k, v in variables.items() if k != 'params'}

  def cost(params):
    output = model.apply({'params': params, **rest}, batch)
    return losses.top_lm_terms(output.top_lm, output.top_codes)['top_lm_code']

  gradient = jit(jax.grad(cost))(variables['params'])
  assert np.any(gradient['top_lm']['prior']['kernel'])
  frozen = gradient['level_0']['compressor']['entropy_model']
  for leaf in jax.tree.leaves(frozen):
    assert not np.any(leaf)
