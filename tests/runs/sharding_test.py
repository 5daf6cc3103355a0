import json
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from abstractinator.config import MeshConfig, RunConfig, TopLMConfig
from abstractinator.decoding.pyramid import make_model
from abstractinator.model.top_lm import CodeSequenceTransformer
from abstractinator.runs import sharding
from abstractinator.runs.state import initial_state
from abstractinator.types import Batch
from configs import default
from tests.helpers import tiny_top_lm
from tests.helpers.implementations import XLA


@pytest.mark.parametrize(
  ('sizes', 'shape'),
  [
    ((-1, 1, 1), (8, 1, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 4, -1), (1, 4, 2)),
    ((8, -1, 1), (8, 1, 1)),
    ((2, 1, 4), (2, 1, 4)),
  ],
)
def test_mesh(sizes, shape):
  mesh = sharding.make_mesh(MeshConfig(*sizes))
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert mesh.devices.shape == shape
  assert mesh.axis_types == (AxisType.Auto,) * 3
  assert set(mesh.devices.flat) == set(jax.devices())


def test_mesh_of_some_devices():
  devices = jax.devices()[2:4]
  mesh = sharding.make_mesh(MeshConfig(-1, 1, 1), devices)
  assert list(mesh.devices.flat) == devices


@pytest.mark.parametrize(
  'sizes', [(3, -1, 1), (4, 1, 1), (16, 1, 1), (-1, 4, 4), (3, 3, 3)]
)
def test_mesh_that_does_not_fit(sizes):
  with pytest.raises(ValueError) as info:
    sharding.make_mesh(MeshConfig(*sizes))
  message = str(info.value)
  assert f'mesh.data={sizes[0]}, mesh.fsdp={sizes[1]}' in message
  assert 'number of devices (8)' in message


def make_state(params):
  return {
    'step': jnp.int32(0),
    'params': params,
    'collections': {
      'vq': {'level_0': {'codebook': jnp.ones((16, 8)), 'n': jnp.ones(16)}},
      'calibration': {'level_0': {'threshold': jnp.float32(0.3)}},
    },
    'opt_state': optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 1e-3)
    ).init(params),
  }


def test_state_shardings():
  mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
  params = {
    'embed': {'embedding': jnp.ones((259, 8))},
    'dense': {'kernel': jnp.ones((8, 4)), 'bias': jnp.ones(4)},
    'heads': {'kernel': jnp.ones((3, 8, 4))},
    'norm': {'scale': jnp.ones(8)},
    'pool': {'query': jnp.ones(8)},
    # 3 does not divide: its axis is left out, the other one stays.
    'odd': {'kernel': jnp.ones((3, 4))},
    'odder': {'kernel': jnp.ones((8, 5)), 'embedding': jnp.ones((8, 5))},
    'head': {'kernel': jnp.ones(8)},
    # A module of this name in the parameters is no statistic.
    'vq': {'kernel': jnp.ones((8, 4))},
  }
  state = make_state(params)
  shardings = sharding.state_shardings(jax.eval_shape(lambda: state), mesh)
  specs = jax.tree.map(lambda s: s.spec, shardings)
  expected = {
    'embed': {'embedding': P(None, 'fsdp')},
    'dense': {'kernel': P('fsdp', 'tensor'), 'bias': P(None)},
    'heads': {'kernel': P(None, 'fsdp', 'tensor')},
    'norm': {'scale': P(None)},
    'pool': {'query': P(None)},
    'odd': {'kernel': P(None, 'tensor')},
    'odder': {'kernel': P('fsdp', None), 'embedding': P(None, None)},
    'head': {'kernel': P('tensor')},
    'vq': {'kernel': P('fsdp', 'tensor')},
  }
  assert specs['params'] == expected
  adam = specs['opt_state'][1][0]
  assert (adam.count, adam.mu, adam.nu) == (P(), expected, expected)
  rest = jax.tree.leaves((shardings['collections'], shardings['step']))
  assert len(rest) == 4
  assert all(s.is_fully_replicated for s in rest)
  placed = jax.device_put(state, shardings)
  shards = placed['params']['heads']['kernel'].addressable_shards
  assert {shard.data.shape for shard in shards} == {(3, 4, 2)}


MLA = dict(form='mla', kv_dim=8, query_dim=8, retrieval_dim=4)


LEVELS = {
  'default': {},
  'rvq': {'quantizer.kind': 'rvq', 'quantizer.start': 'kmeans'},
  'rvq-gradient': {
    'quantizer.kind': 'rvq',
    'quantizer.codebook': 'gradient',
  },
  'vq-gradient': {'quantizer.codebook': 'gradient'},
  'fsq': {'quantizer.kind': 'fsq'},
  'mla': {
    f'{part}.attention.{name}': value
    for part in ('entropy_model', 'encoder', 'expander')
    for name, value in MLA.items()
  },
  'gaussian': {
    'entropy_heads.tie_to_embedding': True,
    'entropy_heads.gaussian_components': 2,
    'entropy_heads.gaussian_layers': 1,
  },
  'code_dim': {'expander.code_dim': 8, 'expander.distance': 'squared'},
  'lookback': {'expander.context': 'full', 'expander.lookback': 2},
  'queries': {'pooling.num_queries': 2},
  'base': {'expander.base': 'entropy_model', 'expander.ends': 'entropy'},
}


@pytest.mark.parametrize('changes', LEVELS.values(), ids=LEVELS)
def test_every_leaf_of_a_level_has_a_rule(changes):
  config = default.get_settings()
  config.model.levels[0].update_from_flattened_dict(changes)
  config = RunConfig.from_dict(json.loads(config.to_json_best_effort()))
  state = jax.eval_shape(
    lambda key: initial_state(
      key,
      make_model(config, 'cpu'),
      optax.adamw(1e-3),
      batch_size=1,
      sequence_length=8,
    ),
    jax.random.key(0),
  )
  assert_covered(state)


@pytest.mark.parametrize('mode', ['discrete', 'continuous'])
@pytest.mark.parametrize('form', ['regular', 'mla'])
def test_every_parameter_of_a_top_lm_has_a_rule(mode, form):
  model = CodeSequenceTransformer(
    TopLMConfig.from_dict(tiny_top_lm.values(mode, form)),
    *(tiny_top_lm.D_LEVEL, (4, 3, 5), (), XLA, jnp.float32),
  )
  variables = jax.eval_shape(
    model.init, jax.random.key(0), tiny_top_lm.make_sequence()
  )
  specs = assert_covered(variables)
  assert specs['params']['start'] == P(None)


def assert_covered(abstract):
  """Every leaf has a rule, and matrices are split where sizes allow it."""
  mesh = sharding.make_mesh(MeshConfig(-1, 2, 2))
  shardings = sharding.state_shardings(abstract, mesh)
  for leaf, placed in zip(
    jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True
  ):
    # Raises where the sizes do not divide.
    placed.shard_shape(leaf.shape)
  specs = jax.tree.map(lambda s: s.spec, shardings)
  axes = {a for s in jax.tree.leaves(specs, is_leaf=is_spec) for a in s}
  assert {'fsdp', 'tensor'} <= axes
  return specs


def is_spec(node):
  return isinstance(node, P)


def test_leaf_without_a_rule():
  mesh = sharding.make_mesh(MeshConfig(8, 1, 1))
  state = make_state({'pool': {'queries': jnp.ones((4, 8))}})
  with pytest.raises(KeyError, match=r'no sharding rule for .*pool/queries'):
    sharding.state_shardings(state, mesh)


def test_replicated():
  mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
  assert sharding.replicated(mesh).is_fully_replicated


@pytest.mark.parametrize(
  ('sizes', 'rows'), [((8, 1, 1), 2), ((2, 2, 2), 4), ((1, 1, 8), 16)]
)
def test_shard_batch(sizes, rows):
  mesh = sharding.make_mesh(MeshConfig(*sizes))
  ids_BS = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
  batch = Batch(ids_BS, -ids_BS, np.arange(16, dtype=np.int32))
  placed = sharding.shard_batch(batch, mesh)
  jax.tree.map(np.testing.assert_array_equal, placed, batch)
  for array in jax.tree.leaves(placed):
    assert array.sharding == sharding.batch_sharding(mesh)
    assert {s.data.shape[0] for s in array.addressable_shards} == {rows}


class Device(NamedTuple):
  id: int
  process_index: int


def over_processes(sizes, devices_per_process):
  """The batch sharding of a mesh as it is when processes share the devices."""
  mesh = sharding.make_mesh(MeshConfig(*sizes))

  def devices_indices_map(shape):
    real = sharding.batch_sharding(mesh).devices_indices_map(shape)
    return {
      Device(device.id, device.id // devices_per_process): index
      for device, index in real.items()
    }

  return types.SimpleNamespace(
    mesh=mesh, devices_indices_map=devices_indices_map
  )


@pytest.mark.parametrize(
  ('sizes', 'devices_per_process', 'expected'),
  [
    ((8, 1, 1), 8, [(0, 1)]),
    ((8, 1, 1), 4, [(0, 2), (1, 2)]),
    ((2, 2, 2), 4, [(0, 2), (1, 2)]),
    ((2, 2, 2), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    # Processes that differ along the tensor axis only need the same rows.
    ((1, 1, 8), 4, [(0, 1), (0, 1)]),
    ((1, 2, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
  ],
)
def test_process_shard(monkeypatch, sizes, devices_per_process, expected):
  shared = over_processes(sizes, devices_per_process)
  for process, shard in enumerate(expected):
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    assert sharding.process_shard(shared, 16) == shard


def test_process_shard_of_this_process():
  mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
  assert sharding.process_shard(sharding.batch_sharding(mesh), 4) == (0, 1)


def test_batch_that_does_not_divide():
  mesh = sharding.make_mesh(MeshConfig(4, 1, 2))
  with pytest.raises(ValueError, match=r'data\.batch_size: got 6.*multiple.*4'):
    sharding.process_shard(sharding.batch_sharding(mesh), 6)


def test_microbatches_that_do_not_divide():
  batch = sharding.batch_sharding(sharding.make_mesh(MeshConfig(4, 1, 2)))
  message = r'data\.batch_size: got 12.*mesh\.fsdp \* microbatches \(8\)'
  with pytest.raises(ValueError, match=message):
    sharding.process_shard(batch, 12, microbatches=2)
  assert sharding.process_shard(batch, 16, microbatches=2) == (0, 1)


def test_processes_that_share_some_rows():
  with pytest.raises(ValueError, match=r'mesh\.tensor: got 2'):
    sharding.process_shard(over_processes((1, 4, 2), 3), 8)
