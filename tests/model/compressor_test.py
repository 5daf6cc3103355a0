"""Segments and codes of a compressor: causality, documents, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.types import NUM_BYTES, PAD_ID
from tests.helpers.jitted import jit

SIZE = 40


@pytest.fixture(scope='module')
def level(tiny_level):
  return tiny_level()


def slots_of_document(output, batch, row, document):
  """Returns the slots that hold the segments of a document, in order."""
  is_here = np.asarray(batch.document_BS[row] == document)
  return np.unique(np.asarray(output.segments.index_BS[row])[is_here])


def assert_same_segments(a, slots_a, b, slots_b, row_a=0, row_b=0):
  """Asserts that two lists of slots have equal codes and vectors."""
  assert len(slots_a) == len(slots_b) > 0
  assert bool(a.is_valid_BP[row_a, slots_a].all())
  assert bool(b.is_valid_BP[row_b, slots_b].all())
  np.testing.assert_array_equal(
    a.quantized.codes_BP[row_a, slots_a], b.quantized.codes_BP[row_b, slots_b]
  )
  for x, y in (
    (a.pooled_BUD, b.pooled_BUD),
    (a.quantized.vectors_BPD, b.quantized.vectors_BPD),
    (a.quantized.distance_BP, b.quantized.distance_BP),
  ):
    np.testing.assert_allclose(x[row_a, slots_a], y[row_b, slots_b], atol=1e-5)


def test_an_id_changes_no_segment_before_its_own(level, make_batch):
  """Row j of a batch has id j changed."""
  row = make_batch([[23, 12]], SIZE)
  same = jax.tree.map(lambda x: jnp.repeat(x, SIZE, axis=0), row)
  changed = same.replace(
    ids_BS=same.ids_BS.at[jnp.arange(SIZE), jnp.arange(SIZE)].set(
      (row.ids_BS[0] + 7) % NUM_BYTES
    )
  )
  before = level.compress(level.variables, same)
  after = level.compress(level.variables, changed)
  moved = 0
  for j in range(35):
    index = np.asarray(before.segments.index_BS[j])
    own = index[j]
    np.testing.assert_array_equal(
      after.segments.index_BS[j, : j + 1], index[: j + 1]
    )
    moved += int((after.segments.index_BS[j] != index).any())
    np.testing.assert_array_equal(
      after.pooled_BUD[j, :own], before.pooled_BUD[j, :own]
    )
    np.testing.assert_array_equal(
      after.quantized.codes_BP[j, :own], before.quantized.codes_BP[j, :own]
    )
    np.testing.assert_array_equal(
      after.quantized.vectors_BPD[j, :own],
      before.quantized.vectors_BPD[j, :own],
    )
    assert np.max(np.abs((after.pooled_BUD - before.pooled_BUD)[j, own])) > 1e-3
  # Boundaries do depend on ids: the equalities above are not of constants.
  assert moved > 10


def test_the_division_of_a_prefix_is_the_prefix_of_the_division(
  level, make_batch
):
  """Row n of a batch ends after n ids."""
  row = make_batch([[23, 12]], SIZE)
  full = jax.tree.map(lambda x: jnp.repeat(x, SIZE, axis=0), row)
  is_prefix_SS = jnp.arange(SIZE) < jnp.arange(SIZE)[:, None]
  prefixes = full.replace(
    ids_BS=jnp.where(is_prefix_SS, full.ids_BS, PAD_ID),
    document_BS=jnp.where(is_prefix_SS, full.document_BS, -1),
  )
  want = level.compress(level.variables, full).segments
  got = level.compress(level.variables, prefixes).segments
  np.testing.assert_array_equal(
    got.index_BS, jnp.where(is_prefix_SS, want.index_BS, -1)
  )
  np.testing.assert_array_equal(
    got.is_start_BS, is_prefix_SS & want.is_start_BS
  )
  np.testing.assert_array_equal(
    got.offset_BS, jnp.where(is_prefix_SS, want.offset_BS, 0)
  )


def test_padding_changes_no_segment(level, make_batch):
  short, long = make_batch([[21, 11]], 32), make_batch([[21, 11]], SIZE)
  other = long.replace(ids_BS=jnp.where(long.document_BS < 0, 65, long.ids_BS))
  want = level.compress(level.variables, short)
  slots = np.arange(int(want.segments.count_B[0]))
  assert len(slots) > 8
  for batch in (long, other):
    got = level.compress(level.variables, batch)
    np.testing.assert_array_equal(
      got.segments.index_BS[:, :32], want.segments.index_BS
    )
    np.testing.assert_array_equal(
      got.segments.is_end_BS[:, :32], want.segments.is_end_BS
    )
    np.testing.assert_array_equal(got.segments.index_BS[:, 32:], -1)
    assert int(got.is_valid_BP.sum()) == len(slots)
    assert_same_segments(got, slots, want, slots)


def test_a_document_gives_the_same_codes_wherever_it_lies(level, make_batch):
  """Other documents of the row, and its place in the row, do not matter."""
  batch = make_batch([[9, 17, 11]], SIZE)
  others = make_batch([[9, 17, 11]], SIZE, seed=1)
  changed = batch.replace(
    ids_BS=jnp.where(batch.document_BS == 1, batch.ids_BS, others.ids_BS)
  )
  alone = make_batch([[17]], SIZE)
  alone = alone.replace(
    ids_BS=alone.ids_BS.at[:, :17].set(batch.ids_BS[:, 9:26])
  )
  outputs = [
    (level.compress(level.variables, b), b, document)
    for b, document in ((batch, 1), (changed, 1), (alone, 0))
  ]
  first, first_slots = None, None
  for output, rows, document in outputs:
    slots = slots_of_document(output, rows, 0, document)
    if first is None:
      first, first_slots = output, slots
      assert len(slots) > 4
    assert_same_segments(first, first_slots, output, slots)
  # The other documents really changed.
  before, after = outputs[0][0], outputs[1][0]
  assert np.max(np.abs(before.pooled_BUD[0, 0] - after.pooled_BUD[0, 0])) > 1e-3


def test_no_segment_crosses_documents(level, make_batch):
  batch = make_batch([[9, 17, 11], [1, 1, 1], [2, 2, 2]], SIZE)
  output = level.compress(level.variables, batch)
  for row in range(3):
    slots = [slots_of_document(output, batch, row, d) for d in range(3)]
    together = np.concatenate(slots)
    assert len(set(together)) == len(together)
    assert len(together) == int(output.segments.count_B[row])


def test_a_row_alone_is_compressed_as_in_a_batch(level, make_batch):
  batch = make_batch([[23, 12], [40], [5, 5, 5]], SIZE)
  together = level.compress(level.variables, batch)
  for row in range(3):
    alone = level.compress(
      level.variables, jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
    )
    np.testing.assert_array_equal(
      alone.segments.index_BS[0], together.segments.index_BS[row]
    )
    slots = np.arange(int(alone.segments.count_B[0]))
    assert_same_segments(alone, slots, together, slots, 0, row)


def test_valid_slots_are_the_segments(level, make_batch):
  batch = make_batch([[23, 12], [3], [40]], SIZE)
  output = level.compress(level.variables, batch)
  slots = level.config.segmentation.num_slots(SIZE)
  np.testing.assert_array_equal(
    output.is_valid_BP,
    np.arange(slots) < np.asarray(output.segments.count_B)[:, None],
  )
  assert not output.segments.is_capacity_bound_BS.any()


def test_a_segment_has_a_code_of_each_query(tiny_level, make_batch):
  """Equal queries give equal vectors and codes, different ones different."""
  one, two = tiny_level(), tiny_level(pooling__num_queries=2)
  batch = make_batch([[23, 12], [3], [40]], SIZE)
  want = one.compress(one.variables, batch)
  query = one.variables['params']['compressor']['pooling']['query']
  pooling = one.variables['params']['compressor']['pooling']
  params = one.variables['params']

  def compress(second):
    changed = pooling | {'query': jnp.concatenate([query, second])}
    compressor = params['compressor'] | {'pooling': changed}
    return two.compress(
      one.variables | {'params': params | {'compressor': compressor}}, batch
    )

  got = compress(query)
  np.testing.assert_array_equal(
    got.is_code_BU, np.repeat(want.is_valid_BP, 2, axis=1)
  )
  np.testing.assert_array_equal(got.is_valid_BP, want.is_valid_BP)
  np.testing.assert_allclose(
    got.pooled_BUD, np.repeat(want.pooled_BUD, 2, axis=1), atol=1e-5
  )
  np.testing.assert_array_equal(
    got.quantized.codes_BP, np.repeat(want.quantized.codes_BP, 2, axis=1)
  )
  other = compress(-query)
  np.testing.assert_allclose(
    other.pooled_BUD[:, ::2], want.pooled_BUD, atol=1e-5
  )
  is_long = np.asarray(want.segments.is_end_BS & (want.segments.offset_BS > 0))
  row, slot = np.nonzero(is_long)[0], want.segments.index_BS[is_long]
  difference = other.pooled_BUD[row, 2 * slot + 1] - want.pooled_BUD[row, slot]
  assert np.abs(difference).max(-1).min() > 1e-3
  assert not np.asarray(other.pooled_BUD)[~np.asarray(got.is_code_BU)].any()


def test_entropy_and_compression_paths_share_no_gradient(level, make_batch):
  batch = make_batch([[23, 12]], SIZE)

  def gradients(params):
    def losses(params):
      output = level.model.apply(
        level.variables | {'params': params}, batch, method='compress'
      )
      parts = (
        output.entropy_logits_BSV,
        output.quantized.vectors_BPD,
        output.entropy_bits_BS,
      )
      return jnp.stack([jnp.sum(jnp.square(part)) for part in parts])

    _, pullback = jax.vjp(losses, params)
    return [pullback(one)[0]['compressor'] for one in jnp.eye(3)]

  of_logits, of_vectors, of_entropies = (
    {
      name
      for name, tree in grads.items()
      if any(bool(x.any()) for x in jax.tree.leaves(tree))
    }
    for grads in jit(gradients)(level.variables['params'])
  )
  assert of_logits == {'entropy_model'}
  assert of_vectors == {'embed', 'encoder', 'pooling', 'quantizer'}
  assert of_entropies == set()


def test_a_pass_counts_lengths_only_with_calibration_mutable(level, make_batch):
  batch = make_batch([[23, 12], [8]], SIZE)
  compress = jit(level.model.apply, method='compress', mutable=['calibration'])
  output, collections = compress(level.variables, batch)
  state = collections['calibration']['compressor']['threshold']
  assert float(state.num_ids) == 43
  assert float(state.num_segments) == float(output.segments.count_B.sum())
  assert float(state.threshold) == 0.0
