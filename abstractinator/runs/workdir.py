"""Directory of a run: its config, and which runs may continue in it."""

import json
import os
from typing import Any

from abstractinator.config import RunConfig
from abstractinator.data.whole_files import write_whole

# Settings, and groups of settings, that a resumed run may change; all others
# determine its results.
_FREE = (
  'max_steps',
  'num_epochs',
  'log_interval',
  'eval_interval',
  'eval_batches',
  'final_eval_batches',
  'checkpoint_interval',
  'max_to_keep',
  'microbatches',
  'health.alarms',
  'health.after_steps',
  'data.read_threads',
  'data.prefetch_batches',
  'mesh',
  'model.implementation',
)


def check(workdir: str, config: RunConfig) -> None:
  """Makes sure that a run may use a directory, changing nothing.

  Args:
    workdir: The directory; it need not exist.
    config: Config of the run. It may differ from the config of a run that is
      already there in how long to train, how often to log and save, on which
      devices and by which kernels.

  Raises:
    ValueError: If the directory holds another run, naming the first setting
      that differs; or files of a run but not its config, or a config that
      cannot be read or lacks a setting.
  """
  stored = _stored_config(workdir)
  if stored is None:
    return
  old, new = _flat(stored.to_dict()), _flat(config.to_dict())
  for path in old | new:
    is_free = any(path == name or path.startswith(f'{name}.') for name in _FREE)
    if not is_free and old.get(path) != new.get(path):
      raise ValueError(
        f'{path}: got {new.get(path)!r}, allowed: {old.get(path)!r} as in the'
        f' run in {workdir}'
      )


def claim(workdir: str, config: RunConfig) -> None:
  """Writes the config of a run into its directory, creating it if need be.

  Raises:
    ValueError: If it cannot be written.
  """
  try:
    os.makedirs(workdir, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2) + '\n'
    write_whole(_config_path(workdir), text.encode())
  except OSError as error:
    raise ValueError(
      f'workdir: got {workdir!r}, allowed: a directory to write to'
      f' ({error.strerror})'
    ) from error


def _stored_config(workdir: str) -> RunConfig | None:
  """Returns the config that `claim` wrote, None if there is no run."""
  path = _config_path(workdir)
  if not os.path.exists(path):
    left = [
      name
      for name in ('checkpoints', 'metrics.jsonl', 'tensorboard')
      if os.path.exists(os.path.join(workdir, name))
    ]
    if left:
      raise ValueError(
        f'workdir: got {workdir!r}, which holds {", ".join(left)} but no'
        ' config.json, allowed: a run or a directory without one'
      )
    return None
  try:
    with open(path, encoding='utf-8') as f:
      values = json.load(f)
  except (OSError, ValueError) as error:
    raise ValueError(f'{path}: cannot be read as JSON ({error})') from error
  return RunConfig.from_stored(values, path)


def _config_path(workdir: str) -> str:
  return os.path.join(workdir, 'config.json')


def _flat(tree: Any, path: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dicts and lists by dotted path."""
  if isinstance(tree, dict):
    items = [(f'{path}.{k}' if path else k, v) for k, v in tree.items()]
  elif isinstance(tree, (list, tuple)):
    items = [(f'{path}[{i}]', v) for i, v in enumerate(tree)]
  else:
    return {path: tree}
  return {p: leaf for k, v in items for p, leaf in _flat(v, k).items()}
