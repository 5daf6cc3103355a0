import types

import jax
import pytest

from abstractinator.training import device_metrics
from abstractinator.training.device_metrics import DeviceMetrics
from abstractinator.training.model_flops import model_flops
from tests import tiny_run


def device(kind, memory=None, process=0):
  return types.SimpleNamespace(
    device_kind=kind, process_index=process, memory_stats=lambda: memory
  )


def test_utilisation_and_memory(monkeypatch):
  monkeypatch.setattr(device_metrics, 'model_flops', lambda _: 394 * 10**12)
  memory = {'bytes_in_use': 3, 'peak_bytes_in_use': 5, 'num_allocs': 7}
  devices = [device('TPU v5 lite', None, 1), device('TPU v5 lite', memory)]
  metrics = DeviceMetrics(tiny_run.config(), devices)
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


def test_nothing_is_counted_or_told_of_a_device_without_a_known_peak(
  monkeypatch,
):
  def count(config):
    raise AssertionError

  monkeypatch.setattr(device_metrics, 'model_flops', count)
  found = DeviceMetrics(tiny_run.config(), jax.devices())
  assert found.tags(1.0) == {}


def test_flops_do_not_depend_on_what_computes():
  config = tiny_run.config()
  kernels = config.to_dict()
  kernels['model']['implementation']['attention'] = 'pallas_interpret'
  assert model_flops(type(config).from_dict(kernels)) == model_flops(config)
