"""A pyramid on a mesh learns as on one device, with less memory on each."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.cli import config_file
from abstractinator.config import ImplementationConfig, MeshConfig, TopLMConfig
from abstractinator.model.top_lm import CodeSequence, CodeSequenceTransformer
from abstractinator.objective import metrics
from abstractinator.runs import sharding
from abstractinator.training.program import make_program
from configs import tiny_2level
from tests.helpers import tiny_mesh, tiny_top_lm
from tests.helpers.implementations import XLA

LARGE = 4096
QUICK = ('base', 'pyramid_2level')


@functools.cache
def on_one_device(levels):
  return tiny_mesh.train(
    tiny_mesh.make_config(tiny_mesh.make_values(levels=levels))
  )


BLOCKS = {'remat': 'blocks'}
DOTS = {'remat': 'dots', 'scan_layers': True}


@pytest.mark.parametrize(
  ('levels', 'mesh', 'microbatches', 'layers'),
  [
    # Each mesh costs a compilation, and a second level doubles it: every run
    # has one mesh, with all axes.
    (1, 'all', 1, {}),
    *(
      pytest.param(2, *case, marks=pytest.mark.nightly)
      for case in [
        ('all', 2, BLOCKS),
        ('one', 4, {}),
        ('one', 2, DOTS),
        ('all', 1, {}),
        ('all', 2, {}),
        ('all', 4, DOTS),
        ('data', 1, {}),
        ('data', 2, DOTS),
        ('fsdp', 1, {}),
        ('fsdp', 2, BLOCKS),
      ]
    ),
  ],
)
def test_a_mesh_learns_as_one_device_does(levels, mesh, microbatches, layers):
  """Losses, codes and statistics of 20 steps from an initial state."""
  one = on_one_device(levels)
  values = tiny_mesh.make_values(levels)
  values.microbatches = microbatches
  values.model.implementation.update(layers)
  there = tiny_mesh.train(tiny_mesh.make_config(values), tiny_mesh.MESHES[mesh])
  np.testing.assert_allclose(there.losses, one.losses, rtol=0, atol=1e-5)
  assert one.losses[-1] < one.losses[0] - 0.1
  jax.tree.map(np.testing.assert_array_equal, there.codes, one.codes)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, there.state.collections, one.state.collections)
  found, expected = (
    metrics.summarize(x.metrics).flattened() for x in (there, one)
  )
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    close(found[name], value, err_msg=name)
  num_devices = math.prod(tiny_mesh.MESHES[mesh])
  if num_devices > 1:
    assert_spread(there.state, num_devices)


@functools.cache
def config_on(mesh):
  """Trains `configs/tiny_2level.py` itself, without its curriculum."""
  values = tiny_2level.get_config()
  values.data.sequence_length = tiny_mesh.TEXT_SIZE
  values.data.batch_size = 8
  values.loss.curriculum_steps, values.loss.curriculum_stops = 0, False
  values.optimizer.warmup_steps = 1
  return tiny_mesh.train(
    tiny_mesh.make_config(values),
    tiny_mesh.MESHES[mesh],
    batch_of=tiny_mesh.make_text,
  )


@pytest.mark.nightly
@pytest.mark.parametrize('mesh', ['data', 'fsdp', 'all'])
def test_a_config_of_two_levels_learns_the_same_on_a_mesh(mesh):
  """At full width, on text in which many segments are equal."""
  one, there = config_on('one'), config_on(mesh)
  np.testing.assert_allclose(there.losses, one.losses, rtol=0, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, there.codes, one.codes)
  assert_spread(there.state, math.prod(tiny_mesh.MESHES[mesh]))


def assert_spread(state, num_devices):
  """Statistics are replicated, and memory is what the shapes say."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    assert len(leaf.sharding.device_set) == num_devices, path
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.collections):
    first, *others = (np.asarray(s.data) for s in leaf.addressable_shards)
    assert first.shape == leaf.shape
    assert len(others) == num_devices - 1
    for other in others:
      np.testing.assert_array_equal(other, first, err_msg=path)
  # An abstract state has the size that arrays take.
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(state)
    for shard in leaf.addressable_shards
    if shard.device == jax.devices()[3]
  )
  shardings = jax.tree.map(lambda x: x.sharding, state)
  assert held == bytes_per_device(state, shardings)


def test_states_of_single_rows_are_added_up_right():
  """XLA once added parts of different rows here; see `ops.shards.by_rows`."""
  values = tiny_top_lm.values()
  values['stack']['num_layers'] = 1
  model = CodeSequenceTransformer(
    TopLMConfig.from_dict(values), 16, (11,), (), XLA, jnp.float32
  )
  rng = np.random.default_rng(0)
  sequence = CodeSequence(
    codes_BP=rng.integers(0, 11, (4, 8)).astype(np.int32),
    vectors_BPD=rng.normal(size=(4, 8, 16)).astype(np.float32),
    document_BP=np.zeros((4, 8), np.int32),
    is_end_BP=np.zeros((4, 8), bool),
  )
  params = jax.device_get(model.init(jax.random.key(0), sequence))
  found = []
  for axes in (tiny_mesh.MESHES['one'], tiny_mesh.MESHES['all']):
    devices = jax.devices()[: math.prod(axes)]
    mesh = sharding.make_mesh(MeshConfig(*axes), devices)
    where = sharding.state_shardings(params, mesh)
    with jax.set_mesh(mesh):
      placed = jax.device_put(params, where)
      rows = sharding.shard_batch(sequence, mesh)
      found.append(jax.device_get(jax.jit(model.apply)(placed, rows)))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, *found)


@functools.cache
def abstract(name):
  """Shapes of the state of a config, which are the same for all kernels."""
  config = config_file.load(name)
  xla = ImplementationConfig.everywhere('xla')
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, implementation=xla),
    data=dataclasses.replace(config.data, batch_size=1),
  )
  program = make_program(config, 'cpu', total_steps=10_000)
  return jax.eval_shape(program.init, jax.random.key(0))


def bytes_per_device(state, shardings):
  return sum(
    math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf, where in zip(
      jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
    )
  )


@pytest.mark.parametrize(
  'name',
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.nightly)
    for name in config_file.names()
  ],
)
def test_every_large_parameter_of_a_config_is_split(name):
  state = abstract(name)
  for axes, least in (((1, 8, 1), 8), ((2, 2, 2), 2), ((1, 2, 4), 2)):
    mesh = sharding.make_mesh(MeshConfig(*axes))
    shardings = sharding.state_shardings(state, mesh)
    for (path, leaf), where in zip(
      jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)),
      jax.tree.leaves((shardings.params, shardings.opt_state)),
      strict=True,
    ):
      if leaf.size >= LARGE:
        parts = leaf.size // math.prod(where.shard_shape(leaf.shape))
        assert parts >= least, (axes, jax.tree_util.keystr(path), leaf.shape)


def test_memory_falls_as_fsdp_grows():
  state = abstract('base')
  megabytes = {}
  for fsdp in (1, 2, 4, 8):
    mesh = sharding.make_mesh(MeshConfig(-1, fsdp, 1))
    shardings = sharding.state_shardings(state, mesh)
    megabytes[fsdp] = [
      bytes_per_device(*of_part) / 1e6
      for of_part in (
        (state.params, shardings.params),
        (state.opt_state, shardings.opt_state),
      )
    ]
  print('configs/base.py, MB a device: fsdp, parameters, optimizer')
  for fsdp, parts in megabytes.items():
    print(fsdp, *(f'{part:.1f}' for part in parts))
    for part, whole in zip(parts, megabytes[1], strict=True):
      assert whole / fsdp <= part < 1.01 * whole / fsdp
