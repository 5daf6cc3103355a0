import dataclasses
import json
import types

import jax
import pytest

from abstractinator.config import RunConfig
from abstractinator.training.flops import DeviceMetrics, model_flops
from abstractinator.training.program import batch_shapes, xla_program
from configs import stage2
from tests.helpers import tiny_run


def device(kind, memory=None, process=0):
  return types.SimpleNamespace(
    device_kind=kind, process_index=process, memory_stats=lambda: memory
  )


def test_utilisation_and_memory():
  memory = {'bytes_in_use': 3, 'peak_bytes_in_use': 5, 'num_allocs': 7}
  devices = [device('TPU v5 lite', None, 1), device('TPU v5 lite', memory)]
  metrics = DeviceMetrics(devices, lambda: 394 * 10**12)
  assert metrics.tags(4.0) == pytest.approx(
    {
      'perf/model_flops_per_second': 98.5e12,
      'perf/model_flops_utilisation': 0.25,
      'perf/device_memory_bytes': 3,
      'perf/device_memory_peak_bytes': 5,
    }
  )
  assert set(metrics.tags(None)) == {
    'perf/device_memory_bytes',
    'perf/device_memory_peak_bytes',
  }


def test_nothing_is_counted_or_told_of_a_device_without_a_known_peak():
  def count():
    raise AssertionError

  assert DeviceMetrics(jax.devices(), count).tags(1.0) == {}


def test_flops_do_not_depend_on_what_computes():
  config = tiny_run.config()
  kernels = config.to_dict()
  kernels['model']['implementation']['attention'] = 'pallas_interpret'
  assert model_flops(type(config).from_dict(kernels)) == model_flops(config)


def test_what_learns_from_codes_runs_the_top_lm_alone():
  values = stage2.get_config()
  values.model.top_lm.expand = False
  values.load_base_from, values.data.train = 'base', 'codes'
  values.data.batch_size, values.data.sequence_length = 2, 128
  values.model.top_lm.stack.attention.form = 'regular'
  all_of_it = RunConfig.from_dict(json.loads(values.to_json_best_effort()))
  alone = dataclasses.replace(all_of_it, objective='top_lm')
  program = xla_program(alone)
  state = jax.eval_shape(program.init, jax.random.key(0))
  ids = batch_shapes(alone).ids_BS.size
  kernels = [
    leaf.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    if path[0].key == 'top_lm' and path[-1].key == 'kernel'
  ]
  # Each kernel takes a multiplication and an addition in three products;
  # attention adds to that.
  found = model_flops(alone) / (6 * ids * sum(kernels))
  assert 1 <= found < 1.3
  assert model_flops(alone) < model_flops(all_of_it) / 2
