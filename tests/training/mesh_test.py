"""A whole pyramid over the devices of a mesh: as on one, and with less each."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from abstractinator.benchmarks import sizes
from abstractinator.config import ImplementationConfig, MeshConfig
from abstractinator.training import sharding
from abstractinator.training.program import make_program
from tests import tiny_mesh

pytestmark = pytest.mark.usefixtures('quick_compilation')
LARGE = 4096
QUICK = ('base', 'pyramid_2level')


@pytest.fixture(scope='module')
def one():
  return tiny_mesh.train(tiny_mesh.make_config())


@pytest.mark.parametrize(
  'name',
  [
    'all',
    pytest.param('data', marks=pytest.mark.nightly),
    pytest.param('fsdp', marks=pytest.mark.nightly),
  ],
)
def test_a_mesh_learns_as_one_device_does(name, one):
  """Losses, codes and statistics of 20 steps, begun in its place."""
  there = tiny_mesh.train(tiny_mesh.make_config(), tiny_mesh.MESHES[name])
  np.testing.assert_allclose(there.losses, one.losses, rtol=0, atol=1e-5)
  assert one.losses[-1] < one.losses[0] - 0.5
  jax.tree.map(np.testing.assert_array_equal, there.codes, one.codes)
  for path, leaf in jax.tree_util.tree_leaves_with_path(there.state.params):
    num_devices = len(leaf.sharding.device_set)
    assert num_devices == 8, path
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    there.state.collections
  ):
    first, *others = (np.asarray(s.data) for s in leaf.addressable_shards)
    assert first.shape == leaf.shape
    assert len(others) == 7
    for other in others:
      np.testing.assert_array_equal(other, first, err_msg=path)
  # Memory that an abstract state promises is what arrays take.
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(there.state)
    for shard in leaf.addressable_shards
    if shard.device == jax.devices()[3]
  )
  shardings = jax.tree.map(lambda x: x.sharding, there.state)
  assert held == bytes_per_device(there.state, shardings)


def abstract(name):
  """Shapes of the state of a config, which depend on no kernel."""
  config = sizes.load(name)
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
    for name in sizes.names()
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
