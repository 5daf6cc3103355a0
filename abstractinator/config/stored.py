"""Configs of runs that were stored before a setting was there."""

from collections.abc import Mapping
from typing import Any

# A value says what a run did that did not have the setting.
_BEFORE = {
  'microbatches': 1,
  'data': {'vocab_size': 256, 'packing': True},
  'model': {'implementation': {'remat': 'none', 'scan_layers': False}},
  'optimizer': {
    'kind': 'adamw',
    'schedule': 'cosine',
    'decay_fraction': 0.2,
    'relative_rates': {
      'entropy_model': 1.0,
      'compressor': 1.0,
      'expander': 1.0,
      'top_lm': 1.0,
    },
    'ema_decay': 0.0,
  },
  'health': {'alarms': False, 'after_steps': 100},
}


def completed(stored: dict[str, Any]) -> dict[str, Any]:
  """A stored config with the settings that came after it.

  Args:
    stored: Nested values, as `RunConfig.to_dict` gave them then.

  Returns:
    The same, and for what it lacks the value that keeps what the run did.
  """
  return _merge(_BEFORE, stored)


def _merge(before: Mapping[str, Any], stored: Any) -> Any:
  if not isinstance(stored, dict):
    return stored
  merged = dict(stored)
  for name, value in before.items():
    if isinstance(value, Mapping):
      merged[name] = _merge(value, merged.get(name, {}))
    else:
      merged.setdefault(name, value)
  return merged
