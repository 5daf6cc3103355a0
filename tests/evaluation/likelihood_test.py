"""Costs of ids, against a decoder that knows only what it has decoded.

The reference decodes each window on its own, id by id and code by code, with
the step functions of the modules and probabilities in float64.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.windows import Passage
from abstractinator.runs.state import variables_of
from abstractinator.types import BOS_ID, EOS_ID, Batch, bytes_to_ids
from tests.helpers import tiny_pyramid, tiny_run
from tests.helpers.jitted import jit

SIZE, STRIDE = 24, 10

CONFIG = tiny_pyramid.make_config(
  {
    'expander.context': 'window',
    'expander.lookback': 1,
    'pooling.num_queries': 2,
    # Some rows run short of slots.
    'segmentation.capacity_length': 3.0,
  },
  {'quantizer.kind': 'rvq', 'quantizer.codebook_size': 4},
)


def texts():
  rng = np.random.default_rng(1)
  return [rng.bytes(n) for n in (61, 1, SIZE - 1, SIZE, 9)]


@pytest.fixture(scope='module')
def evaluator():
  run = tiny_run.pyramid_config()
  run = dataclasses.replace(
    run, model=CONFIG, data=dataclasses.replace(run.data, sequence_length=SIZE)
  )
  variables = variables_of(tiny_run.random_state(run, seed=0))
  return Evaluator(
    run, variables, batch_size=4, stride=STRIDE, devices=jax.devices()[:1]
  )


def windows(size):
  """Returns start, first scored id and stop of each window of a passage."""
  found, begin = [], 0
  while begin < size:
    start = max(0, begin - (SIZE - STRIDE))
    found.append((start, begin, min(start + SIZE, size)))
    begin = found[-1][2]
  return found


class Decoder:
  """Costs of a window, computed one id after the other."""

  def __init__(self, evaluator):
    model, self.variables = evaluator.model, evaluator.variables
    self.num_short = 0

    def compiled(method):
      return jit(model.apply, method=method)

    self.compress = compiled('compress_all')
    self.expander_steps = [
      compiled(lambda m, *a, level=level: _step(m.levels[level].expander, *a))
      for level in range(2)
    ]
    self.predict = [
      compiled(
        lambda m, *a, level=level: _predicted(m.levels[level].expander, *a)
      )
      for level in range(2)
    ]
    self.books, self.empty, self.top_empty, self.top_start = jax.device_get(
      compiled(_start)(self.variables)
    )
    self.top_step = compiled(lambda m, *a: m.top_lm.step(*a))
    self.top_heads = compiled(
      lambda m, x, digits: (
        m.top_lm.code_head(x, digits),
        m.top_lm.end_logits(x),
      )
    )

  def bits(self, ids, counted_from):
    """Computes the bits of the ids of a window from `counted_from` on."""
    padded = np.pad(ids, (0, SIZE - len(ids)), constant_values=EOS_ID + 1)
    document = np.where(np.arange(SIZE) < len(ids), 0, -1)
    batch = Batch(
      jnp.asarray(padded[None], jnp.int32),
      jnp.asarray(document[None], jnp.int32),
      jnp.zeros(1, jnp.int32),
    )
    output = jax.device_get(self.compress(self.variables, batch))
    found, known = {}, counted_from
    ids = list(map(int, ids))
    for number, level in enumerate(output.levels):
      c = level
      queries = c.is_code_BU.shape[1] // c.is_valid_BP.shape[1]
      index = c.segments.index_BS[0][: len(ids)].tolist()
      short = bool(c.segments.is_capacity_bound_BS[0].any())
      self.num_short += short
      part = self._expander_bits(number, ids, index, known, short, c)
      found |= {f'level{number}/{k}': v for k, v in part.items()}
      # Codes of segments that end before are known.
      last = {slot: at for at, slot in enumerate(index)}
      codes = c.quantized.codes_BP[0].tolist()
      vectors = c.quantized.vectors_BPD[0]
      ids = codes[: queries * len(last)]
      known = queries * sum(at < known for at in last.values())
    is_whole = EOS_ID in padded
    return found | self._top_bits(ids, vectors, known, is_whole)

  def _expander_bits(self, number, ids, index, known, short, compressed):
    memory = np.asarray(compressed.quantized.vectors_BPD)
    cache, books = self.empty[number], self.books if number else None
    config = CONFIG.levels[number]
    is_alone = config.expander.context == 'segment'
    bos = BOS_ID if number == 0 else 12
    found = {'expander_bits': 0.0, 'end_bits': 0.0}
    offset = -1
    for at, id_ in enumerate(ids):
      opens = at == 0 or index[at] != index[at - 1]
      offset = 0 if opens else offset + 1
      fed = bos if at == 0 or (opens and is_alone) else ids[at - 1]
      own = np.full((1, 1), index[at], np.int32)
      x, cache = self.expander_steps[number](
        self.variables,
        np.full(1, fed, np.int32),
        np.full(1, offset, np.int32),
        np.full(1, index[at] if is_alone else 0, np.int32),
        cache,
        np.ones(1, bool),
        (memory, own, np.zeros((1, 1), np.int32)),
        books,
      )
      logits, end, digits = jax.device_get(
        self.predict[number](
          self.variables, x, np.full(1, id_, np.int32), books
        )
      )
      if at >= known:
        found['expander_bits'] += sum(
          categorical_bits(row[0], digit)
          for row, digit in zip(logits, digits[0], strict=True)
        )
      goes_without_saying = (
        id_ == EOS_ID and number == 0
      ) or offset == config.segmentation.max_length - 1
      if (at >= known or short) and not goes_without_saying:
        is_end = at + 1 == len(ids) or index[at + 1] != index[at]
        found['end_bits'] += binary_bits(end[0], is_end)
    return found

  def _top_bits(self, codes, vectors, known, is_whole):
    state, cache = self.top_start, self.top_empty
    sizes = CONFIG.levels[-1].quantizer.stage_sizes
    found = {'top_lm_code_bits': 0.0, 'top_lm_end_bits': 0.0}
    for at, code in enumerate(codes):
      digits = [code % sizes[0], code // sizes[0]]
      logits, _ = jax.device_get(
        self.top_heads(self.variables, state, np.asarray([digits]))
      )
      state, cache = self.top_step(
        self.variables,
        np.asarray(vectors[None, at]),
        np.zeros(1, np.int32),
        cache,
        np.ones(1, bool),
      )
      _, end = jax.device_get(
        self.top_heads(self.variables, state, np.asarray([digits]))
      )
      if at >= known:
        found['top_lm_code_bits'] += sum(
          categorical_bits(row[0], digit)
          for row, digit in zip(logits, digits, strict=True)
        )
        found['top_lm_end_bits'] += binary_bits(
          end[0], is_whole and at + 1 == len(codes)
        )
    return found


def _start(model):
  """Returns codebooks, and the state of a decoder before the first id."""
  return (
    model.levels[0].compressor.quantizer.codebooks(),
    [level.expander.init_cache(1, 4 * SIZE) for level in model.levels],
    model.top_lm.init_cache(1, 4 * SIZE),
    model.top_lm.start_state(1),
  )


def _step(expander, fed, offset, group, cache, active, memory, books):
  vectors, *where = memory
  memory = expander.remember(vectors), *where
  return expander.step(fed, offset, group, cache, active, memory, books)


def _predicted(expander, x, ids, books):
  told = expander.vocabulary.predict(x, ids, books)
  sizes = expander.sizes
  digits = jnp.stack(
    [ids // math.prod(sizes[:m]) % n for m, n in enumerate(sizes)], -1
  )
  if len(sizes) == 1:
    digits = ids[:, None]  # Of which specials are values.
  return told.logits, expander.end_logits(x, ids, books), digits


def categorical_bits(logits, value):
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max()
  return (np.log(np.exp(logits).sum()) - logits[value]) / np.log(2)


def binary_bits(logit, is_true):
  p = 1 / (1 + math.exp(-float(logit)))
  return -math.log2(p if is_true else 1 - p)


def test_bits_are_those_of_a_decoder(evaluator):
  decoder = Decoder(evaluator)
  expected, num_bytes, num_windows = {}, 0, 0
  for text in texts():
    ids = bytes_to_ids(text)
    num_bytes += len(text)
    for start, counted, stop in windows(len(ids)):
      part = decoder.bits(ids[start:stop], counted - start)
      num_windows += 1
      for name, value in part.items():
        expected[name] = expected.get(name, 0.0) + value
  # In rows short of slots the ends of context ids cost bits, in others not.
  assert 0 < decoder.num_short < 2 * num_windows
  got = {}
  passages = [Passage(bytes_to_ids(text)) for text in texts()]
  # Each window has a row of its own, as in the reference: which windows share a
  # row changes how slots run short.
  for scored in evaluator.score(passages, alone=True):
    for name, value in scored.sums.flattened().items():
      got[name] = got.get(name, 0.0) + float(value.sum(dtype=np.float64))
  assert got['num_bytes'] == num_bytes
  for name, value in expected.items():
    assert value > 1, name
    assert got[name] == pytest.approx(value, rel=1e-4), name
