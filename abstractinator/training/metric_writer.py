"""Metrics on disk: TensorBoard event files and a file of JSON lines."""

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Self

import numpy as np
import tensorboardX

from abstractinator.data.whole_files import write_whole

# A killed run loses what was not flushed; the default is two minutes.
_TENSORBOARD_FLUSH_SECONDS = 10


class MetricWriter:
  """Writer of a run's metrics; on all but one process it does nothing.

  WORKDIR/metrics.jsonl has one object per call of `write_scalars`: `step` and
  the scalars under their tags. WORKDIR/tensorboard has the same and more.

  Attributes:
    tensorboard_path: Directory of the TensorBoard files, for `--logdir`.
  """

  def __init__(self, workdir: str, resume_step: int = 0, enabled: bool = True):
    """Opens the files of a run.

    Args:
      workdir: The run's directory, created if need be.
      resume_step: Step of the checkpoint that the run resumes from; 0 for a run
        from the start. Lines that an earlier attempt wrote for later steps are
        dropped, since those steps are done again.
      enabled: Whether to write anything: true on one process of a run.

    Raises:
      ValueError: If metrics.jsonl holds a line that is not a JSON object with a
        step.
    """
    self.tensorboard_path = os.path.join(workdir, 'tensorboard')
    path = os.devnull
    if enabled:
      os.makedirs(workdir, exist_ok=True)
      path = _jsonl_path(workdir)
      _drop_after(path, resume_step)
    # Line buffering: a killed run leaves whole lines.
    self._jsonl = open(path, 'a', buffering=1, encoding='utf-8')
    self._tensorboard = tensorboardX.SummaryWriter(
      self.tensorboard_path,
      write_to_disk=enabled,
      purge_step=resume_step + 1,
      flush_secs=_TENSORBOARD_FLUSH_SECONDS,
      # File names have a resolution of seconds: a run that resumes within one
      # would overwrite its own file.
      filename_suffix=f'.{time.time_ns()}',
    )

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes named numbers of one step.

    Args:
      step: Optimizer step.
      scalars: Values on the host, by tag. Values that are not finite become
        null in the JSON lines, since JSON has no NaN.
    """
    values = {tag: float(value) for tag, value in scalars.items()}
    for tag, value in values.items():
      self._tensorboard.add_scalar(tag, value, step)
    line = {'step': step} | {
      tag: value if math.isfinite(value) else None
      for tag, value in values.items()
    }
    self._jsonl.write(json.dumps(line) + '\n')

  def write_histogram(
    self,
    step: int,
    tag: str,
    counts: np.ndarray,
    edges: np.ndarray | None = None,
  ) -> None:
    """Writes a histogram of K bins.

    Args:
      step: Optimizer step.
      tag: Name of the histogram.
      counts: Number of values in each bin, [K].
      edges: Edges of the bins, ascending, [K + 1]; None if bin k holds the
        integer k, such as a code.
    """
    counts = np.asarray(counts, np.float64)
    if edges is None:
      # The bin of an integer is centered on it.
      edges = np.arange(len(counts) + 1) - 0.5
    edges = np.asarray(edges, np.float64)
    values = (edges[:-1] + edges[1:]) / 2
    # A list of all values, which `add_histogram` takes, could be of any length.
    self._tensorboard.add_histogram_raw(
      tag,
      min=values[0],
      max=values[-1],
      num=counts.sum(),
      sum=(counts * values).sum(),
      sum_squares=(counts * values**2).sum(),
      bucket_limits=edges[1:].tolist(),
      bucket_counts=counts.tolist(),
      global_step=step,
    )

  def write_image(self, step: int, tag: str, pixels: np.ndarray) -> None:
    """Writes a picture.

    Args:
      step: Optimizer step.
      tag: Name of the picture.
      pixels: Colors, [height, width, 3] uint8.
    """
    self._tensorboard.add_image(tag, pixels, step, dataformats='HWC')

  def write_text(self, step: int, tag: str, markdown: str) -> None:
    """Writes a Markdown text for TensorBoard's text tab."""
    self._tensorboard.add_text(tag, markdown, step)

  def close(self) -> None:
    """Flushes and closes the files; nothing may be written afterwards."""
    self._jsonl.close()
    self._tensorboard.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def last_step(workdir: str) -> int | None:
  """Returns the latest step in a run's metrics.jsonl; None if it has no line.

  Args:
    workdir: The run's directory.

  Raises:
    ValueError: If the file cannot be read, or holds a line that is not a JSON
      object with a step.
  """
  lines = _read_lines(_jsonl_path(workdir))
  return max((step for step, _ in lines), default=None)


def _jsonl_path(workdir: str) -> str:
  return os.path.join(workdir, 'metrics.jsonl')


def _read_lines(path: str) -> list[tuple[int, str]]:
  """Returns the step and text of each line but a half-written last one."""
  if not os.path.exists(path):
    return []
  try:
    with open(path, encoding='utf-8', errors='replace') as f:
      lines = f.read().splitlines()
  except OSError as error:
    raise ValueError(f'{path}: cannot be read ({error.strerror})') from error
  read = []
  for number, line in enumerate(lines, start=1):
    try:
      read.append((int(json.loads(line)['step']), line))
    except (ValueError, KeyError, TypeError) as error:
      if number < len(lines):
        raise ValueError(
          f'{path}:{number}: got {line[:60]!r}, allowed: a JSON object with a'
          ' step'
        ) from error
  return read


def _drop_after(path: str, last_step: int) -> None:
  """Drops the lines of steps after `last_step` and a half-written last one."""
  if not os.path.exists(path):
    return
  kept = [f'{line}\n' for step, line in _read_lines(path) if step <= last_step]
  # A run that is killed while writing keeps the old file.
  write_whole(path, ''.join(kept).encode())
