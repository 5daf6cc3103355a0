"""Directory of a run: its config, and which runs may continue in it."""

import json
import os
from typing import Any

from abstractinator.config import RunConfig
from abstractinator.data.whole_files import write_whole

# Files of an exported model; see `exported`.
EXPORTED = ('model.safetensors', 'README.md', 'metrics.jsonl', 'config.json')
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


def is_exported(directory: str) -> bool:
  """Returns whether a directory holds an exported model, damaged or not."""
  return os.path.lexists(os.path.join(directory, EXPORTED[0]))


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
  if is_exported(workdir):
    raise ValueError(
      f'workdir: got {workdir!r}, which holds an exported model, allowed: a run'
      ' or a directory without one'
    )
  stored = stored_config(workdir)
  if stored is not None:
    _require_same(config, stored, '', f'the run in {workdir}')
    return
  names = ('checkpoints', 'metrics.jsonl', 'tensorboard')
  left = [n for n in names if os.path.lexists(os.path.join(workdir, n))]
  if left:
    raise ValueError(
      f'workdir: got {workdir!r}, which holds {", ".join(left)} but no'
      ' config.json, allowed: a run or a directory without one'
    )


def check_checkpoint(workdir: str, step: int, values: Any) -> None:
  """Makes sure that a checkpoint has the config that its run has written.

  Args:
    workdir: Directory of the run. A run without a config is left unchecked.
    step: Step of the checkpoint.
    values: JSON values of the config in the checkpoint.

  Raises:
    ValueError: If they differ in more than a resumed run may change, or one of
      them lacks a setting.
  """
  path = os.path.join(workdir, 'checkpoints', str(step))
  inside = RunConfig.from_stored(values, f'{path}: config')
  stored = stored_config(workdir)
  if stored is not None:
    prefix = f'{_config_path(workdir)}: '
    _require_same(stored, inside, prefix, f'the config of {path}')


def _require_same(
  new: RunConfig, old: RunConfig, prefix: str, source: str
) -> None:
  """Raises ValueError at the first setting that must not differ and does."""
  found, allowed = flat(new.to_dict()), flat(old.to_dict())
  for path in allowed | found:
    is_free = any(path == name or path.startswith(f'{name}.') for name in _FREE)
    if not is_free and allowed.get(path) != found.get(path):
      raise ValueError(
        f'{prefix}{path}: got {found.get(path)!r}, allowed:'
        f' {allowed.get(path)!r} as in {source}'
      )


def claim(workdir: str, config: RunConfig) -> None:
  """Writes the config of a run into its directory, creating it if need be.

  Raises:
    ValueError: If it cannot be written.
  """
  try:
    os.makedirs(workdir, exist_ok=True)
    text = json.dumps(config.stored(), indent=2) + '\n'
    write_whole(_config_path(workdir), text.encode())
  except OSError as error:
    raise ValueError(
      f'workdir: got {workdir!r}, allowed: a directory to write to'
      f' ({error.strerror})'
    ) from error


def stored_config(workdir: str) -> RunConfig | None:
  """Returns the config that `claim` wrote, None if there is none.

  Raises:
    ValueError: If it cannot be read, or lacks a setting.
  """
  path = _config_path(workdir)
  if not os.path.lexists(path):
    return None
  try:
    with open(path, 'rb') as file:
      values = json.load(file)
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f'{path}: cannot be read as JSON ({error})') from error
  return RunConfig.from_stored(values, path)


def _config_path(workdir: str) -> str:
  return os.path.join(workdir, 'config.json')


def flat(tree: Any, path: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dicts and lists by dotted path."""
  if isinstance(tree, dict):
    items = [(f'{path}.{k}' if path else k, v) for k, v in tree.items()]
  elif isinstance(tree, (list, tuple)):
    items = [(f'{path}[{i}]', v) for i, v in enumerate(tree)]
  else:
    return {path: tree}
  return {p: leaf for k, v in items for p, leaf in flat(v, k).items()}
