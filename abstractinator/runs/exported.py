"""Trained models in folders of their own, which are read in place of runs.

    DIR/model.safetensors   parameters and collections by path
    DIR/config.json         config of the run, and the version that wrote it
    DIR/README.md           model card
    DIR/metrics.jsonl       figures on held-out text, in one line

The metadata of model.safetensors has the step, the type of the parameters, and
checksums of each array, of the config and of itself, which are compared when
something is read.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy

from abstractinator.config import RunConfig
from abstractinator.data.whole_files import write_whole
from abstractinator.runs import checksums, metric_lines, workdir
from abstractinator.types import PyTree

WEIGHTS, CARD, METRICS, CONFIG = FILES = workdir.EXPORTED
# Types that parameters may be written in; they are float32 when they are used.
DTYPES = ('float32', 'bfloat16')
_RECORD = 'abstractinator'


def require_room(directory: str, *, force: bool = False) -> None:
  """Makes sure that a model can be exported to a directory.

  Args:
    directory: The directory; it need not exist.
    force: Whether files in it may be replaced. A run is never written into.

  Raises:
    ValueError: If the directory holds a run, or anything without `force`.
    OSError: If it cannot be listed.
  """
  there = os.listdir(directory) if os.path.lexists(directory) else []
  # A run has the second one before its first checkpoint.
  if not {'checkpoints', 'tensorboard'}.isdisjoint(there):
    raise ValueError(f'{directory}: holds a run, allowed: another directory')
  if there and not force:
    raise ValueError(
      f'{directory}: is not empty, allowed: an empty or new directory, or'
      f' --force to replace {", ".join(FILES)} in it'
    )


def write(
  directory: str,
  config: RunConfig,
  variables: Mapping[str, PyTree],
  line: metric_lines.Line,
  *,
  card: str,
  dtype: str,
) -> None:
  """Writes a model to a directory, which is created if need be.

  Args:
    directory: The directory; see `require_room`.
    config: Config of the run.
    variables: Parameters, float32, and collections of its model.
    line: Figures of `held_out`, with the step.
    card: Text of the model card, Markdown.
    dtype: Type to round the parameters to, one of `DTYPES`.

  Raises:
    OSError: If it cannot be written.
  """
  # On the host, where nothing is compiled.
  host = jax.device_get(dict(variables))
  host['params'] = jax.tree.map(
    lambda x: x.astype(jnp.dtype(dtype)), host['params']
  )
  arrays, settings = checksums.by_path(host), config.stored()
  record = checksums.sealed(
    {
      'step': line['step'],
      'dtype': dtype,
      'config': checksums.of_json(settings),
      'arrays': checksums.on_host_memory(arrays),
    }
  )
  weights = safetensors.numpy.save(arrays, {_RECORD: json.dumps(record)})
  os.makedirs(directory, exist_ok=True)
  # The largest file first: a full disk then leaves an older export whole.
  for name, content in (
    (WEIGHTS, weights),
    (CARD, card.encode(errors='backslashreplace')),
    (METRICS, metric_lines.to_text(line).encode()),
    (CONFIG, (json.dumps(settings, indent=2) + '\n').encode()),
  ):
    write_whole(os.path.join(directory, name), content)


def dtype_of(directory: str) -> str:
  """Returns the type that the parameters of an exported model are written in.

  Raises:
    ValueError: If the file is damaged.
  """
  with _opened(directory) as (_, record):
    return record['dtype']


def held_out(directory: str, step: int) -> metric_lines.Line:
  """Returns the held-out figures of a run after a step, as one line.

  Args:
    directory: Directory of the run.
    step: The step.

  Returns:
    `step`, figures as `eval/NAME`, and the mean of `perf/step_seconds`.

  Raises:
    ValueError: If metrics.jsonl is damaged. A run without it has no figures.
  """
  is_there = os.path.exists(metric_lines.path_of(directory))
  lines = metric_lines.read(directory) if is_there else []
  lines = [line for line in lines if line['step'] <= step]
  found: metric_lines.Line = {'step': step}
  for line in lines:
    if line['step'] == step:
      found |= {k: x for k, x in line.items() if k.startswith('eval/')}
  if step > 0 and (minutes := metric_lines.minutes(lines)) > 0:
    found['perf/step_seconds'] = 60 * minutes / step
  return found


def read_config(
  directory: str, step: int | None = None
) -> tuple[int, dict[str, Any]]:
  """Returns the step of an exported model, and the config of its run.

  Args:
    directory: Directory of the model.
    step: The only step that is allowed; None for any.

  Raises:
    ValueError: If the step is another, or a file is missing or damaged.
  """
  with _opened(directory) as (_, record):
    if step not in (None, record['step']):
      raise ValueError(
        f'{directory}: got step {step}, allowed: {record["step"]}, the one that'
        ' was exported'
      )
  path = os.path.join(directory, CONFIG)
  try:
    with open(path, 'rb') as file:
      values = json.load(file)
  except (OSError, ValueError, RecursionError) as error:
    _raise_damaged(path, str(error), error)
  if checksums.of_json(values) != record['config']:
    _raise_damaged(path, 'wrong checksum')
  return record['step'], values


def restore_variables(
  directory: str,
  abstract_variables: Mapping[str, PyTree],
  step: int | None = None,
  *,
  params_field: str = 'params',
  place: tuple[str, ...] = (),
) -> PyTree:
  """Reads an exported model, as `checkpoint.restore_variables` reads a run.

  Args:
    directory: Directory of the model.
    abstract_variables: `params` and the collections of a module: shapes and
      dtypes, with or without shardings, of exactly the arrays that it has.
    step: Unused: there is only one.
    params_field: Unused: a model has been exported with the parameters that are
      meant for use.
    place: Path of the module in the model; the whole model by default.

  Raises:
    ValueError: If the file is damaged, or its arrays differ from those of
      `abstract_variables` in paths, shapes or dtypes.
  """
  del step, params_field
  path = os.path.join(directory, WEIGHTS)
  with _opened(directory) as (file, record):
    found = {
      name: file.get_tensor(name)
      for name in file.keys()
      if tuple(name.split('/')[1 : len(place) + 1]) == place
    }
  wanted = checksums.by_path(abstract_variables)
  checksums.require_same_leaves(
    path,
    found,
    {
      name: jax.ShapeDtypeStruct(
        x.shape, record['dtype'] if name.startswith('params/') else x.dtype
      )
      for name, x in wanted.items()
    },
  )
  for name, checksum in checksums.on_host_memory(found).items():
    if record['arrays'].get(name) != checksum:
      _raise_damaged(path, f'wrong checksum of {name}')
  return jax.tree.unflatten(
    jax.tree.structure(abstract_variables),
    [
      jax.device_put(found[name].astype(x.dtype), getattr(x, 'sharding', None))
      for name, x in wanted.items()
    ],
  )


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[tuple[Any, dict[str, Any]]]:
  """Opens the arrays of an exported model, with the record of checksums."""
  path = os.path.join(directory, WEIGHTS)
  try:
    with safetensors.safe_open(path, framework='np') as file:
      text = (file.metadata() or {}).get(_RECORD, '')
      yield file, _record(path, text)
  except (OSError, safetensors.SafetensorError) as error:
    _raise_damaged(path, str(error), error)


def _record(path: str, text: str) -> dict[str, Any]:
  """Returns the record of checksums, which is checked by its own."""
  try:
    record = json.loads(text)
  except (ValueError, RecursionError) as error:
    _raise_damaged(path, f'metadata: {error}', error)
  kinds = {'step': int, 'dtype': str, 'config': int, 'arrays': dict}
  if (
    not checksums.is_sealed(record)
    or not all(type(record.get(k)) is kind for k, kind in kinds.items())
    or record['dtype'] not in DTYPES
  ):
    _raise_damaged(path, 'metadata: wrong checksum')
  return record


def _raise_damaged(
  path: str, detail: str, cause: Exception | None = None
) -> NoReturn:
  raise ValueError(
    f'{path}: this exported model is damaged ({detail}); allowed: what'
    ' `abstractinator export` wrote'
  ) from cause
