"""Compression of the beginnings of rows against compression of whole rows.

Boundaries and codes must be equal, not nearly so. Computed in another order,
entropies differ by rounding, and a decision that hangs on the last bits may
come out otherwise. Rows with such a decision are found in the numbers of the
whole row alone, before the prefill is looked at, and left out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.model.compressor import SegmentCompressor
from abstractinator.types import NUM_BYTES
from tests.helpers.implementations import XLA
from tests.helpers.jitted import init, jit_to_numpy

SIZE, ROWS = 40, 215
# Margin of entropies and code distances that decide; their errors are below a
# tenth of it.
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
  """Returns ids, documents, the length of each row, and of its prefix."""
  rng = np.random.default_rng(seed)
  letters = rng.integers(ord('a'), ord('z') + 1, (ROWS, SIZE))
  ids = rng.integers(0, NUM_BYTES, (ROWS, SIZE))
  ids = np.where(rng.random((ROWS, SIZE)) < 0.7, letters, ids)
  is_last = rng.random((ROWS, SIZE)) < rng.choice([0, 0.05, 0.3], (ROWS, 1))
  document = np.cumsum(np.pad(is_last, ((0, 0), (1, 0)))[:, :-1], axis=1)
  count = rng.integers(1, SIZE + 1, ROWS)
  document = np.where(np.arange(SIZE) < count[:, None], document, -1)
  cut = rng.integers(0, count + 1)
  # Empty prefixes, and whole rows.
  cut[:5], cut[5:10] = 0, count[5:10]
  return np.int32(ids), np.int32(document), count, cut


def run_whole(module, ids, document):
  """Returns the output, its segments in the code space, and the codebook."""
  output = module(ids, document, jnp.arange(ROWS))
  y = module.quantizer.to_code_space(output.pooled_BUD)
  return output, y, module.quantizer.entries()


class Compared:
  """A compressor, and its outputs for whole rows and for prefixes.

  Attributes:
    config: Config of the level.
    whole: Output for the whole rows.
    prefix: Output for the prefixes.
    state: State after the prefixes.
    document: Document of each id, [B, S].
    count: Ids of each row, [B].
    cut: Ids of each prefix, [B].
    is_safe: True for rows in which no decision hangs on the last bits, [B].
  """

  def __init__(self, rule, config):
    self.config = config
    module = SegmentCompressor(config, NUM_BYTES, XLA, jnp.float32)
    zeros = jnp.zeros((1, 8), jnp.int32)
    variables = init(module, jax.random.key(0), zeros, zeros, zeros[:, 0])
    # Initial predictions are nearly uniform; these differ.
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: x * 20 if 'head' in str(path) else x, variables['params']
    )
    variables = variables | {'params': params}
    ids, self.document, self.count, self.cut = make_rows(
      list(SETTINGS).index(rule)
    )
    self.whole, y, entries = jit_to_numpy(module.apply, method=run_whole)(
      variables, ids, self.document
    )
    is_in = np.arange(SIZE) < self.cut[:, None]
    self.prefix, self.state = jit_to_numpy(
      module.apply, method='prefill', capacity=SIZE
    )(
      variables,
      # Ids that are still to come are not read.
      np.where(is_in, ids, 99),
      np.where(is_in, self.document, -1),
    )
    self.is_safe = _decisions_are_safe(config, self.whole, ids, self.document)
    self.is_safe &= _codes_are_safe(y, entries, self.whole)


def _codes_are_safe(y_BUC, entries_KC, whole):
  """Returns rows whose nearest entries are nearer than others by a margin."""
  distance = np.square(y_BUC[:, :, None] - entries_KC).sum(-1)
  nearest = np.sort(distance, axis=-1)
  is_close = nearest[..., 1] - nearest[..., 0] < MARGIN
  return ~(is_close & whole.is_code_BU).any(axis=1)


def _decisions_are_safe(config, whole, ids, document):
  """Returns rows in which every decision of the rule has a margin, [B] bool."""
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
  """Returns bits in units of 2^-12, rounded, and whether rounding is close."""
  scaled = bits * 4096
  return np.round(scaled), np.abs(scaled % 1 - 0.5) < MARGIN * 4096


@pytest.fixture(scope='module')
def compare(tiny_config):
  @functools.cache
  def build(rule):
    changes = {
      'segmentation__rule': rule,
      'segmentation__min_length': 1 if rule == 'space' else 2,
      # Slots for every id, so that they do not run short in whole rows.
      'segmentation__capacity_length': 1.0,
    }
    config = tiny_config(**(changes | SETTINGS[rule]))
    return Compared(rule, config)

  return build


rules = pytest.mark.parametrize(
  'rule',
  [
    # The others differ in the rule alone, which `tests/ops` has, too.
    rule
    if rule == 'equal_information'
    else pytest.param(rule, marks=pytest.mark.nightly)
    for rule in SETTINGS
  ],
)


@rules
def test_a_prefix_has_the_segments_of_the_row(compare, rule):
  got = compare(rule)
  whole, prefix, safe = got.whole, got.prefix, got.is_safe
  assert not whole.segments.is_capacity_bound_BS.any()
  assert safe.sum() >= 200
  is_in = np.arange(SIZE) < got.cut[:, None]
  is_in &= safe[:, None]
  np.testing.assert_array_equal(
    prefix.segments.is_start_BS[is_in], whole.segments.is_start_BS[is_in]
  )
  for name in ('entropy_bits_BS', 'entropy_nats_BS'):
    np.testing.assert_allclose(
      getattr(prefix, name)[is_in], getattr(whole, name)[is_in], atol=2e-5
    )
  # Segments that end within the prefix have the codes of the row.
  is_before = np.arange(SIZE) < got.cut[:, None] - 1
  row, at = np.nonzero(whole.segments.is_end_BS & is_in & is_before)
  slot = whole.segments.index_BS[row, at]
  queries = got.config.pooling.num_queries
  codes, pooled = (
    [x.reshape(ROWS, SIZE, queries, -1)[row, slot] for x in pair]
    for pair in (
      (prefix.quantized.codes_BP, whole.quantized.codes_BP),
      (prefix.pooled_BUD, whole.pooled_BUD),
    )
  )
  np.testing.assert_array_equal(*codes)
  np.testing.assert_allclose(*pooled, atol=1e-5)
  # The equalities are not of constants: segments of many lengths, many codes.
  lengths = np.bincount(whole.segments.offset_BS[row, at] + 1)
  assert (lengths[1:] > 20).sum() >= 4
  assert len(np.unique(codes[0])) >= 8
  assert whole.entropy_bits_BS[is_in].std() > 0.01


@rules
def test_the_state_after_a_prefix_is_about_the_next_id(compare, rule):
  """Its prediction, whether it opens a segment, and lengths up to there."""
  got = compare(rule)
  row = np.arange(ROWS)
  next_ = np.minimum(got.cut, SIZE - 1)
  document = got.document[row, next_]
  before = np.where(
    got.cut > 0, got.document[row, np.maximum(got.cut - 1, 0)], 0
  )
  goes_on = got.is_safe & (got.cut < got.count) & (document == before)
  assert goes_on.sum() > 100
  row, next_ = row[goes_on], next_[goes_on]
  state = jax.tree.map(lambda x: x[goes_on], got.state)
  np.testing.assert_allclose(
    state.predicted.logits, got.whole.entropy_logits_BSV[row, next_], atol=5e-5
  )
  is_start = got.whole.segments.is_start_BS[row, next_]
  np.testing.assert_array_equal(state.opens_B, is_start)
  assert 0.1 < is_start.mean() < 0.9
  segmenter = state.segmenter
  np.testing.assert_array_equal(segmenter.document_B, document[goes_on])
  np.testing.assert_array_equal(
    segmenter.length_B, got.whole.segments.offset_BS[row, next_] + 1
  )
  np.testing.assert_allclose(
    segmenter.last_entropy_bits_B,
    got.whole.entropy_bits_BS[row, next_],
    atol=2e-5,
  )


def test_rows_longer_than_the_capacity_are_refused(tiny_config):
  config = tiny_config(entropy_model__window=None)
  module = SegmentCompressor(config, NUM_BYTES, XLA, jnp.float32)
  ids = jnp.zeros((2, SIZE), jnp.int32)
  variables = jax.eval_shape(
    module.init, jax.random.key(0), ids, ids, ids[:, 0]
  )

  def run(capacity):
    prefill = functools.partial(
      module.apply, method='prefill', capacity=capacity
    )
    return jax.eval_shape(prefill, variables, ids, ids)

  run(SIZE)
  with pytest.raises(ValueError, match=rf'{SIZE} ids, allowed: .* \(11\)'):
    run(10)
