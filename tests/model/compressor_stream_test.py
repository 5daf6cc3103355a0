"""A compressor fed one id at a time against whole rows.

Boundaries and codes must be equal, not nearly so. Computed in another order,
entropies differ by rounding, and a decision that hangs on the last bits may
fall otherwise; rows with such a decision are found in the numbers of the whole
row alone, before the stream is looked at, and left out.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model import compressor_stream
from abstractinator.model.compressor import SegmentCompressor
from abstractinator.types import NUM_BYTES
from tests.helpers.implementations import XLA
from tests.helpers.jitted import jit

SIZE, ROWS, STEPS = 40, 215, 66
# Of entropies and code distances that decide; errors are below a tenth.
MARGIN = 5e-5

MLA = {
  'form': 'mla',
  'kv_dim': 6,
  'query_dim': 5,
  'retrieval_dim': 4,
}
SETTINGS = {
  'entropy_delta': {'segmentation__threshold': 0.1},
  'entropy_threshold': {
    'segmentation__threshold': 5.0,
    'entropy_model__window': None,
    'encoder__window': None,
  },
  'equal_information': {
    'segmentation__threshold': 45.0,
    **{f'entropy_model__attention__{k}': v for k, v in MLA.items()},
    **{f'encoder__attention__{k}': v for k, v in MLA.items()},
  },
  'stride': {'segmentation__threshold': 3.4, 'pooling__num_queries': 2},
  'space': {'segmentation__threshold': 0.5},
  'gaussian': {
    'segmentation__rule': 'entropy_delta',
    'segmentation__threshold': 0.02,
    'entropy_heads__gaussian_components': 2,
    'entropy_heads__gaussian_layers': 1,
    'entropy_heads__source': 'gaussian',
  },
}


def make_rows(seed):
  """Ids, documents, which ids end one, ids of each row, and ids at once."""
  rng = np.random.default_rng(seed)
  letters = rng.integers(ord('a'), ord('z') + 1, (ROWS, SIZE))
  ids = rng.integers(0, NUM_BYTES, (ROWS, SIZE))
  ids = np.where(rng.random((ROWS, SIZE)) < 0.7, letters, ids)
  is_last = rng.random((ROWS, SIZE)) < rng.choice([0, 0.05, 0.3], (ROWS, 1))
  document = np.cumsum(np.pad(is_last, ((0, 0), (1, 0)))[:, :-1], axis=1)
  count = rng.integers(1, SIZE + 1, ROWS)
  document = np.where(np.arange(SIZE) < count[:, None], document, -1)
  cut = rng.integers(0, count + 1)
  # Nothing at once, and everything.
  cut[:5], cut[5:10] = 0, count[5:10]
  return np.int32(ids), np.int32(document), is_last, count, cut


def make_schedule(count, cut, seed):
  """[STEPS, ROWS] position that each row takes; SIZE where it waits."""
  rng = np.random.default_rng(seed)
  at, schedule = cut.copy(), []
  for _ in range(STEPS):
    active = (at < count) & (rng.random(len(at)) < 0.8)
    schedule.append(np.where(active, at, SIZE))
    at = at + active
  np.testing.assert_array_equal(at, count)
  return np.array(schedule)


def run_whole(module, ids, document):
  """The output, its segments in the space of the codes, and the codebook."""
  output = module(ids, document, jnp.arange(ROWS))
  y = module.quantizer.to_code_space(output.pooled_BUD)
  return output, y, module.quantizer.entries()


def run_stream(module, ids, document, is_last, cut, schedule):
  """Everything up to the cuts at once, then steps, then the end."""
  row = jnp.arange(ids.shape[0])
  prefix, last, state = compressor_stream.prefill(
    module,
    # What stands in the place of ids to come is not read.
    jnp.where(jnp.arange(SIZE) < cut[:, None], ids, 99),
    jnp.where(jnp.arange(SIZE) < cut[:, None], document, -1),
    is_last[row, jnp.maximum(cut - 1, 0)],
    capacity=SIZE,
  )

  def step(module, state, at):
    active = at < SIZE
    now = jnp.minimum(at, SIZE - 1)
    output, state = compressor_stream.step(
      module,
      jnp.where(active, ids[row, now], 99),
      is_last[row, now] | ~active,
      active,
      state,
    )
    return state, output

  state, outputs = nn.scan(
    step,
    variable_broadcast=['params', 'vq', 'calibration'],
    split_rngs={'params': False},
  )(module, state, schedule)
  return prefix, last, outputs, compressor_stream.finish(module, state)


class Compared:
  """A compressor and its results both ways, as numpy arrays.

  Attributes:
    whole: Output of the whole rows.
    starts: [B, S] bool, which ids opened a segment in the stream.
    ends: [B, S] int, how many times the stream said that a segment ended there.
    codes, pooled: [B, S, Q], of the segments that ended at ids.
    entropies: [B, S] entropy of the prediction of each id; NaN where the stream
      was not asked.
    is_safe: [B] bool, no decision hangs on the last bits.
  """

  def __init__(self, rule, config):
    self.config = config
    module = SegmentCompressor(config, NUM_BYTES, XLA, jnp.float32)
    zeros = jnp.zeros((1, 8), jnp.int32)
    variables = jit(module.init)(jax.random.key(0), zeros, zeros, zeros[:, 0])
    # Initial predictions are nearly uniform; these say something.
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: x * 20 if 'head' in str(path) else x, variables['params']
    )
    variables = variables | {'params': params}
    seed = list(SETTINGS).index(rule)
    self.rows = make_rows(seed)
    ids, self.document, is_last, count, cut = self.rows
    schedule = make_schedule(count, cut, seed)
    (whole, y, entries), streamed = jax.tree.map(
      np.asarray,
      (
        jit(module.apply, method=run_whole)(variables, ids, self.document),
        jit(module.apply, method=run_stream)(
          variables, ids, self.document, is_last, cut, schedule
        ),
      ),
    )
    self.whole = whole
    self.is_safe = _decisions_are_safe(config, whole, ids, self.document)
    self.is_safe &= _codes_are_safe(y, entries, whole)
    self.gather(count, cut, schedule, *streamed)

  def gather(self, count, cut, schedule, prefix, last, outputs, end):
    shape, queries = (ROWS, SIZE), self.config.pooling.num_queries
    slots = (ROWS, SIZE, queries)
    self.starts = np.zeros(shape, bool)
    self.ends = np.zeros(shape, int)
    self.codes = np.full(slots, -1)
    self.pooled = np.zeros((*slots, prefix.pooled_BUD.shape[-1]), np.float32)
    prefix_codes = prefix.quantized.codes_BP.reshape(slots)
    prefix_pooled = prefix.pooled_BUD.reshape(self.pooled.shape)
    self.entropies = np.full(shape, np.nan, np.float32)

    # Also of the id after as many as there may be.
    assert np.isfinite(last.entropy_bits_B).all()
    assert np.isfinite(outputs.entropy_bits_B).all()

    def ended(row, at, pooled, codes):
      self.ends[row, at] += 1
      self.codes[row, at] = codes
      self.pooled[row, at] = pooled

    def of_stream(row, at, end, index):
      if end.is_end_B[index]:
        codes = end.quantized.codes_BP[index]
        ended(row, at, end.pooled_BQD[index], codes)

    for row in range(ROWS):
      n = cut[row]
      self.starts[row, :n] = prefix.segments.is_start_BS[row, :n]
      self.entropies[row, :n] = prefix.entropy_bits_BS[row, :n]
      for at in np.nonzero(prefix.segments.is_end_BS[row, : max(n - 1, 0)])[0]:
        slot = prefix.segments.index_BS[row, at]
        ended(row, at, prefix_pooled[row, slot], prefix_codes[row, slot])
      if n:
        assert last.is_start_B[row] == self.starts[row, n - 1]
        of_stream(row, n - 1, last.end, row)
      else:
        assert not last.is_start_B[row]
        assert not last.end.is_end_B[row]
      if n < SIZE:
        self.entropies[row, n] = last.entropy_bits_B[row]
      for t, at in enumerate(schedule[:, row]):
        if at == SIZE:
          assert not outputs.is_start_B[t, row]
          assert not outputs.end.is_end_B[t, row]
          continue
        self.starts[row, at] = outputs.is_start_B[t, row]
        of_stream(row, at, outputs.end, (t, row))
        if at + 1 < SIZE:
          self.entropies[row, at + 1] = outputs.entropy_bits_B[t, row]
      of_stream(row, count[row] - 1, end, row)


def _codes_are_safe(y_BUC, entries_KC, whole):
  """[B] bool, the nearest entry is nearer than the next by a margin."""
  distance = np.square(y_BUC[:, :, None] - entries_KC).sum(-1)
  nearest = np.sort(distance, axis=-1)
  is_close = nearest[..., 1] - nearest[..., 0] < MARGIN
  return ~(is_close & whole.is_code_BU).any(axis=1)


def _decisions_are_safe(config, whole, ids, document):
  """[B] bool, every rule's decision has a margin."""
  rule, threshold = config.segmentation.rule, config.segmentation.threshold
  bits = whole.entropy_bits_BS.astype(np.float64)
  is_real = document >= 0
  if rule == 'entropy_delta':
    margin = np.abs(np.diff(bits, axis=1) - threshold)
    within = is_real[:, 1:] & (np.diff(document, axis=1) == 0)
    return ~((margin < MARGIN) & within).any(axis=1)
  if rule == 'entropy_threshold':
    return ~((np.abs(bits - threshold) < MARGIN) & is_real).any(axis=1)
  if rule == 'equal_information':
    logits = whole.entropy_logits_BSV.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    surprisal = -np.take_along_axis(log_p, ids[..., None], -1)[..., 0]
    spent, doubt = _units(surprisal / np.log(2))
    need, own_doubt = _units(bits)
    safe = np.ones(len(ids), bool)
    for row, at in zip(*np.nonzero(is_real), strict=True):
      # The segment that is open before the id: up to `max_length` ids.
      if at and document[row, at] == document[row, at - 1]:
        begin = at - 1 - whole.segments.offset_BS[row, at - 1]
        over = spent[row, begin:at].sum() + need[row, at] - threshold * 4096
        slack = doubt[row, begin:at].sum() + own_doubt[row, at]
        safe[row] &= not slack or abs(over - 0.5) > slack
    return safe
  return np.ones(len(ids), bool)


def _units(bits):
  """In units of 2^-12, rounded, and whether that could come out otherwise."""
  scaled = bits * 4096
  return np.round(scaled), np.abs(scaled % 1 - 0.5) < MARGIN * 4096


@pytest.fixture(scope='module')
def compare(tiny_config):
  @functools.cache
  def build(rule):
    changes = {
      'segmentation__rule': rule,
      'segmentation__min_length': 1 if rule == 'space' else 2,
      # Slots for every id, so that they do not bind in whole rows.
      'segmentation__capacity_length': 1.0,
    }
    config = tiny_config(**(changes | SETTINGS[rule]))
    return Compared(rule, config)

  return build


@pytest.mark.parametrize(
  'rule',
  [
    # Each compiles for 10 s; the others differ in the rule alone, which
    # `tests/ops` streams too. That of 'gaussian' is `entropy_delta`.
    rule
    if rule in ('equal_information', 'gaussian')
    else pytest.param(rule, marks=pytest.mark.nightly)
    for rule in SETTINGS
  ],
)
def test_ids_one_at_a_time_give_what_the_whole_row_gives(compare, rule):
  """200 rows a rule: a random part at once, then id by id, rows at own pace."""
  got = compare(rule)
  whole, safe, real = got.whole, got.is_safe, got.document >= 0
  assert not whole.segments.is_capacity_bound_BS.any()
  assert safe.sum() >= 200
  kept = real & safe[:, None]
  np.testing.assert_array_equal(
    got.starts[safe], whole.segments.is_start_BS[safe]
  )
  # Every segment ends once.
  np.testing.assert_array_equal(got.ends[safe], whole.segments.is_end_BS[safe])
  row, at = np.nonzero(whole.segments.is_end_BS & safe[:, None])
  slot = whole.segments.index_BS[row, at]
  codes = whole.quantized.codes_BP.reshape(got.codes.shape)
  np.testing.assert_array_equal(got.codes[row, at], codes[row, slot])
  pooled = whole.pooled_BUD.reshape(got.pooled.shape)
  np.testing.assert_allclose(got.pooled[row, at], pooled[row, slot], atol=1e-5)
  np.testing.assert_allclose(
    got.entropies[kept], whole.entropy_bits_BS[kept], atol=1e-5
  )
  # The equalities are not of constants: segments of many lengths, many codes.
  lengths = np.bincount(whole.segments.offset_BS[row, at] + 1)
  assert (lengths[1:] > 20).sum() >= 4
  assert len(np.unique(got.codes[row, at])) >= 8
  assert whole.entropy_bits_BS[kept].std() > 0.01


def test_a_start_predicts_what_comes_first_and_has_no_open_segment(tiny_config):
  module = SegmentCompressor(tiny_config(), NUM_BYTES, XLA, jnp.float32)
  zeros = jnp.zeros((2, 4), jnp.int32)

  def run(key):
    whole, variables = module.init_with_output(key, zeros, zeros, zeros[:, 0])
    start = compressor_stream.start
    state = module.apply(variables, 2, SIZE, method=start)
    end = module.apply(variables, state, method=compressor_stream.finish)
    return whole, state, end

  whole, state, end = jit(run)(jax.random.key(0))
  assert state.opens_B.all()
  assert not end.is_end_B.any()
  np.testing.assert_allclose(
    state.predicted.logits, whole.entropy_logits_BSV[:, 0], atol=1e-5
  )
  np.testing.assert_allclose(
    state.segmenter.last_entropy_bits_B, whole.entropy_bits_BS[:, 0], atol=1e-5
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('changes', [{}, SETTINGS['gaussian']], ids=str)
def test_a_step_leaves_the_state_in_the_types_of_its_start(
  tiny_config, dtype, changes
):
  module = SegmentCompressor(
    tiny_config(**changes), NUM_BYTES, XLA, jnp.dtype(dtype)
  )
  zeros = jnp.zeros((2, 8), jnp.int32)
  variables = jax.eval_shape(
    module.init, jax.random.key(0), zeros, zeros, zeros[:, 0]
  )
  start = functools.partial(
    module.apply, method=compressor_stream.start, batch_size=2, capacity=9
  )
  state = jax.eval_shape(start, variables)
  row = jax.ShapeDtypeStruct((2,), jnp.int32)
  flag = jax.ShapeDtypeStruct((2,), jnp.bool)
  step = functools.partial(module.apply, method=compressor_stream.step)
  output, after = jax.eval_shape(step, variables, row, flag, flag, state)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert output.entropy_bits_B.dtype == jnp.float32
  assert output.end.pooled_BQD.dtype == jnp.dtype(dtype)
