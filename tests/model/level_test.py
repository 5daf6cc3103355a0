"""One level: parameters, types, statistics, and the size of its arrays."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core

from abstractinator.config import ModelConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.model.level import Abstractinator
from abstractinator.model.pyramid import advance_collections
from abstractinator.objective import losses
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.ops.attention import reference
from abstractinator.runs.state import initial_state
from abstractinator.training.step import train_step
from abstractinator.types import NUM_BYTES, Batch
from tests.helpers.implementations import XLA, XLA_CONFIG
from tests.helpers.jitted import jit
from tests.helpers.loss_weights import loss_weights
from tests.helpers.relative_error import relative_error

SIZE = 40
WEIGHTS = loss_weights(
  entropy_model=1.0, expander=1.0, end=1.0, commitment=0.25, codebook=1.0
)

TWO_LAYERS = {
  f'{part}__num_layers': 2 for part in ('entropy_model', 'encoder', 'expander')
}
BLOCK = {
  'attention/out/kernel': (2, 8, 16),
  'attention/qkv/kernel': (16, 3, 2, 8),
  'attention_norm/scale': (16,),
  'ffn/down/kernel': (24, 16),
  'ffn/gate_up/kernel': (16, 2, 24),
  'ffn_norm/scale': (16,),
}
CROSS = {
  'cross/out/kernel': (2, 8, 16),
  'cross/v/kernel': (16, 2, 8),
}
CROSS_OF_SEVERAL = CROSS | {
  'cross/k/kernel': (16, 2, 8),
  'cross/q/kernel': (16, 2, 8),
  'cross_norm/scale': (16,),
}


def under(prefix, tree):
  return {f'{prefix}/{name}': shape for name, shape in tree.items()}


def expected_params(cross, queries):
  entropy_model = 'compressor/entropy_model'
  return {
    f'{entropy_model}/embed/embedding': (259, 16),
    **under(f'{entropy_model}/stack/block_0', BLOCK),
    **under(f'{entropy_model}/stack/block_1', BLOCK),
    f'{entropy_model}/stack/norm/scale': (16,),
    f'{entropy_model}/head/kernel': (16, 259),
    'compressor/embed/embedding': (259, 16),
    **under('compressor/encoder/block_0', BLOCK),
    **under('compressor/encoder/block_1', BLOCK),
    'compressor/encoder/norm/scale': (16,),
    'compressor/pooling/query': (16 * queries,),
    'compressor/pooling/q/kernel': (16, 2, 8),
    'compressor/pooling/k/kernel': (16, 2, 8),
    'compressor/pooling/v/kernel': (16, 2, 8),
    'compressor/pooling/out/kernel': (16, 16),
    'compressor/pooling/in_norm/scale': (16,),
    'compressor/pooling/out_norm/scale': (16,),
    'compressor/quantizer/down/kernel': (16, 6),
    'compressor/quantizer/up/kernel': (6, 16),
    'expander/vocabulary/embed/embedding': (259, 16),
    'expander/offset_embed/embedding': (6, 16),
    **under('expander/block_0', BLOCK | cross),
    **under('expander/block_1', BLOCK | cross),
    'expander/norm/scale': (16,),
    'expander/vocabulary/head/kernel': (16, 259),
    'expander/end_hidden/kernel': (32, 16),
    'expander/end_head/kernel': (16, 1),
  }


def paths(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.fixture(scope='module')
def level(tiny_level):
  return tiny_level()


@pytest.mark.parametrize(
  ('lookback', 'queries', 'cross'),
  [(0, 1, CROSS), (2, 1, CROSS_OF_SEVERAL), (0, 3, CROSS_OF_SEVERAL)],
)
def test_parameters_by_path_and_shape(tiny_config, lookback, queries, cross):
  config = tiny_config(
    expander__lookback=lookback, pooling__num_queries=queries, **TWO_LAYERS
  )
  model = Abstractinator(config, NUM_BYTES, XLA, jnp.bfloat16)
  zeros = jnp.zeros((1, 8), jnp.int32)
  variables = jax.eval_shape(
    model.init, jax.random.key(0), Batch(zeros, zeros, zeros[:, 0])
  )
  assert set(variables) == {'params', 'vq', 'calibration'}
  assert paths(variables['params']) == expected_params(cross, queries)
  for leaf in jax.tree.leaves(variables['params']):
    assert leaf.dtype == jnp.float32
  state = 'compressor/quantizer/state'
  assert paths(variables['vq']) == {
    f'{state}/codebook_KC': (12, 6),
    f'{state}/ema_count_K': (12,),
    f'{state}/ema_sum_KC': (12, 6),
    f'{state}/last_hit_step_K': (12,),
    f'{state}/step': (),
    f'{state}/reservoir_RC': (12, 6),
    f'{state}/reservoir_step_R': (12,),
    f'{state}/hits_K': (12,),
    f'{state}/sum_KC': (12, 6),
    f'{state}/priority_R': (12,),
    f'{state}/candidate_RC': (12, 6),
  }
  threshold = 'compressor/threshold'
  assert paths(variables['calibration']) == {
    f'{threshold}/threshold': (),
    f'{threshold}/num_ids': (),
    f'{threshold}/num_segments': (),
  }


def test_bfloat16_computes_finite_float32_logits(tiny_level, make_batch):
  batch = make_batch([[23, 12], [40], [3]], SIZE)
  level = tiny_level('bfloat16')
  output = level.call(level.variables, batch)
  assert output.compressed.pooled_BUD.dtype == jnp.bfloat16
  assert output.compressed.quantized.vectors_BPD.dtype == jnp.bfloat16
  for x in (
    output.compressed.entropy_logits_BSV,
    output.compressed.entropy_bits_BS,
    output.compressed.quantized.distance_BP,
    output.compressed.entropy_nats_BS,
    *output.expanded.logits,
    output.expanded.nats_BS,
    output.expanded.end_logits_BS,
  ):
    assert x.dtype == jnp.float32
  for leaf in jax.tree.leaves(output):
    assert np.isfinite(np.asarray(leaf, np.float32)).all()
  # The same function, but for rounding; the expanders are given equal codes.
  exact = tiny_level().call(level.variables, batch)
  expanded = level.expand(
    level.variables,
    batch.ids_BS,
    batch.document_BS,
    exact.compressed.segments,
    exact.compressed.quantized.vectors_BPD,
  )
  is_real = np.asarray(batch.document_BS) >= 0
  for got, want in (
    (
      output.compressed.entropy_logits_BSV,
      exact.compressed.entropy_logits_BSV,
    ),
    (expanded.logits[0], exact.expanded.logits[0]),
    (expanded.end_logits_BS, exact.expanded.end_logits_BS),
  ):
    assert relative_error(got[is_real], want[is_real]) < 0.02


def test_an_empty_row_is_finite_and_counts_for_nothing(level, make_batch):
  batch = make_batch([[23, 12], [], [40]], SIZE)
  output = level.call(level.variables, batch)
  for leaf in jax.tree.leaves(output):
    assert np.isfinite(np.asarray(leaf, np.float32)).all()
  assert int(output.compressed.segments.count_B[1]) == 0
  kept = jax.tree.map(lambda x: x[jnp.array([0, 2, 2])], batch)
  kept = kept.replace(document_BS=kept.document_BS.at[2].set(-1))
  other = level.call(level.variables, kept)
  a, b = losses.level_terms(output, batch), losses.level_terms(other, kept)
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_collections_after_microbatches_are_those_of_the_batch(
  level, make_batch
):
  """Four microbatches, in another order, then the end of the step."""
  batch = make_batch([[23, 12], [40], [5, 5, 5], [31]], SIZE)
  mutable = ['vq', 'calibration']
  apply = jit(level.model.apply, method='compress', mutable=mutable)
  params = level.variables['params']
  start = {name: level.variables[name] for name in mutable}
  output, whole = apply({'params': params, **start}, batch)
  parts = start
  for row in (2, 0, 3, 1):
    # One row, and empty ones, so that all shapes are the same.
    is_other = jnp.arange(4)[:, None] != row
    micro = batch.replace(
      document_BS=jnp.where(is_other, -1, batch.document_BS)
    )
    part, parts = apply({'params': params, **parts}, micro)
    is_valid = np.asarray(part.is_valid_BP[row])
    np.testing.assert_array_equal(
      part.quantized.codes_BP[row, is_valid],
      output.quantized.codes_BP[row, is_valid],
    )
  step = jit(advance_collections)
  moved = step(whole)
  for a, b in ((whole, parts), (moved, step(parts))):
    jax.tree.map(
      np.testing.assert_array_equal, *(exact_part(c) for c in (a, b))
    )
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), a, b
    )
  state = whole['vq']['compressor']['quantizer']['state']
  assert float(state.hits_K.sum()) == float(output.segments.count_B.sum())
  moved = moved['vq']['compressor']['quantizer']['state']
  assert int(moved.step) == 1
  assert float(moved.hits_K.sum()) == 0


def exact_part(collections):
  """Returns counts and choices, which have to be equal in every bit."""
  state = collections['vq']['compressor']['quantizer']['state']
  threshold = collections['calibration']['compressor']['threshold']
  return (
    state.hits_K,
    state.ema_count_K,
    state.priority_R,
    state.last_hit_step_K,
    state.reservoir_step_R,
    threshold.num_ids,
    threshold.num_segments,
    threshold.threshold,
  )


def subjaxprs(value):
  if isinstance(value, core.ClosedJaxpr):
    yield value.jaxpr
  elif isinstance(value, core.Jaxpr):
    yield value
  elif isinstance(value, (tuple, list)):
    for item in value:
      yield from subjaxprs(item)


def quadratic_arrays(jaxpr, sizes, largest):
  """Returns arrays with two axes as long as rows, or as many numbers in one."""
  found = []
  for equation in jaxpr.eqns:
    for var in (*equation.invars, *equation.outvars):
      shape = getattr(var.aval, 'shape', ())
      is_long = [size in sizes or size >= 1000 for size in shape]
      if sum(is_long) > 1 or math.prod(shape) > largest:
        found.append((equation.primitive.name, shape))
    for value in equation.params.values():
      for inner in subjaxprs(value):
        found += quadratic_arrays(inner, sizes, largest)
  return found


@pytest.mark.parametrize(
  ('context', 'lookback'), [('segment', 0), ('window', 2)]
)
def test_a_training_step_holds_no_array_quadratic_in_the_sequence(
  tiny_config, context, lookback
):
  size = 4096
  config = tiny_config(
    expander__context=context,
    expander__lookback=lookback,
    segmentation__capacity_length=3.0,
    quantizer__codebook_size=40,
    **TWO_LAYERS,
  )
  slots = config.segmentation.num_slots(size)
  assert slots == 1366
  model = AbstractinatorPyramid(
    ModelConfig((config,), None, 'float32', XLA_CONFIG),
    NUM_BYTES,
    XLA,
    jnp.float32,
  )
  optimizer = optax.adam(1e-3)
  state = jax.eval_shape(
    lambda: initial_state(
      jax.random.key(0), model, optimizer, batch_size=2, sequence_length=size
    )
  )
  ids = jax.ShapeDtypeStruct((2, size), jnp.int32)
  batch = Batch(ids, ids, jax.ShapeDtypeStruct((2,), jnp.int32))
  step = functools.partial(
    train_step,
    model=model,
    optimizer=optimizer,
    weights=WEIGHTS,
    objective=OBJECTIVES['all'],
    seed=0,
  )
  jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
  assert count_equations(jaxpr) > 2000
  # Per id, nothing is wider than the logits: 2 rows of 4096 ids of 259.
  largest = 2 * size * 300
  assert largest < size * slots
  assert quadratic_arrays(jaxpr, {size, slots}, largest) == []


def count_equations(jaxpr):
  total = len(jaxpr.eqns)
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      total += sum(map(count_equations, subjaxprs(value)))
  return total


def test_the_search_for_quadratic_arrays_finds_the_dense_reference():
  """The search looks into gradients, jits, scans and checkpoints."""
  size = 1100
  x = jax.ShapeDtypeStruct((1, size, 2, 4), jnp.float32)

  @jax.jit
  @jax.checkpoint
  def dense(x, group):
    return reference.attention(x, x, x, group_BS=group, window=3, scale=1.0)

  def loss(x, group):
    total, _ = jax.lax.scan(
      lambda c, _: (c + dense(x, group).sum(), None), 0.0, length=2
    )
    return total

  group = jax.ShapeDtypeStruct((1, size), jnp.int32)
  jaxpr = jax.make_jaxpr(jax.grad(loss))(x, group).jaxpr
  assert not any(
    math.prod(v.aval.shape) >= size**2 for e in jaxpr.eqns for v in e.outvars
  )
  hidden = {shape for _, shape in quadratic_arrays(jaxpr, {}, 300 * size)}
  assert (1, 2, size, size) in hidden
  shapes = {shape for _, shape in quadratic_arrays(jaxpr, {size}, size**3)}
  assert (1, 2, size, size) in shapes
