"""How well a run uses its devices: share of their peak, memory."""

from collections.abc import Sequence

import jax

from abstractinator.config import RunConfig
from abstractinator.training.chips import chip_of
from abstractinator.training.model_flops import model_flops

# What a backend calls it, and what the metrics do.
_MEMORY = {
  'bytes_in_use': 'perf/device_memory_bytes',
  'peak_bytes_in_use': 'perf/device_memory_peak_bytes',
}


class DeviceMetrics:
  """Measures of the devices of a run; those that nothing is known of lack."""

  def __init__(self, config: RunConfig, devices: Sequence[jax.Device]):
    """Looks the devices up.

    Args:
      config: Of the run, of which products are counted if the peak of the
        devices is known: it takes seconds.
      devices: All of the run, of one kind.
    """
    process = jax.process_index()
    self._local = next(d for d in devices if d.process_index == process)
    chip = chip_of(self._local.device_kind)
    self._peak = chip and chip.flops_per_second * len(devices)
    self._flops = model_flops(config) if chip else None

  def tags(self, step_seconds: float | None) -> dict[str, float]:
    """Measures by tag.

    Args:
      step_seconds: Mean of the steps since the last call, None if unknown.
    """
    tags = {}
    if self._peak and step_seconds:
      rate = self._flops / step_seconds
      tags['perf/model_flops_per_second'] = rate
      tags['perf/model_flops_utilisation'] = rate / self._peak
    # None, or without some of them, as the backend likes.
    memory = self._local.memory_stats() or {}
    return tags | {
      tag: memory[name] for name, tag in _MEMORY.items() if name in memory
    }
