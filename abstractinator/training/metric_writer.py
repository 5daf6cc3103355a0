"""Metrics on disk: TensorBoard event files and a greppable JSON lines file."""

import json
import math
import os
import struct
import time
import zlib
from collections.abc import Mapping
from typing import Self

import numpy as np
import tensorboardX
from tensorboardX.proto.summary_pb2 import Summary

# tensorboardX's own default, two minutes, is what a killed run would lose.
_TENSORBOARD_FLUSH_SECONDS = 10


class MetricWriter:
  """Writes a run's metrics; on all but one process it does nothing.

  Attributes:
    jsonl_path: WORKDIR/metrics.jsonl, one object per call of `write_scalars`:
      `step` and the scalars under their tags.
    tensorboard_path: WORKDIR/tensorboard, the directory for `--logdir`.
  """

  def __init__(
    self, workdir: str, resume_step: int | None = None, enabled: bool = True
  ):
    """Opens the files of a run.

    Args:
      workdir: The run's directory, created if need be.
      resume_step: The step of the checkpoint that the run goes on from. What
        an earlier attempt wrote for later steps is dropped, since those steps
        are done again. None for a run from the start: all of it is dropped.
      enabled: Whether to write at all: true on one process of a run.

    Raises:
      ValueError: If metrics.jsonl holds a line that is not an object of ours.
    """
    self.jsonl_path = os.path.join(workdir, 'metrics.jsonl')
    self.tensorboard_path = os.path.join(workdir, 'tensorboard')
    self._enabled = enabled
    if not enabled:
      return
    os.makedirs(workdir, exist_ok=True)
    last_step = -1 if resume_step is None else resume_step
    _drop_after(self.jsonl_path, last_step)
    # Line buffering: a killed run leaves whole lines.
    self._jsonl = open(self.jsonl_path, 'a', buffering=1, encoding='utf-8')
    self._tensorboard = tensorboardX.SummaryWriter(
      self.tensorboard_path,
      purge_step=last_step + 1,
      flush_secs=_TENSORBOARD_FLUSH_SECONDS,
      # Files are named by the second: a run that resumes within the same one
      # would overwrite what it resumes.
      filename_suffix=f'.{time.time_ns()}',
    )

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes named numbers of one step.

    Args:
      step: Optimizer step.
      scalars: Tag to value on the host. Values that are not finite become
        null in the JSON lines, which know no NaN.
    """
    if not self._enabled:
      return
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
    """Writes how often each of K values was met.

    Args:
      step: Optimizer step.
      tag: Name of the histogram.
      counts: [K].
      edges: [K + 1], of the bins; None where value k is the integer k, such as
        a code.
    """
    if not self._enabled:
      return
    counts = np.asarray(counts, np.float64)
    if edges is None:
      # An integer's bin reaches half of one to either side of it.
      edges = np.arange(len(counts) + 1) - 0.5
    edges = np.asarray(edges, np.float64)
    values = (edges[:-1] + edges[1:]) / 2
    # From the counts, for a list of all values could be of any length.
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
      pixels: [height, width, 3] uint8.
    """
    if not self._enabled:
      return
    height, width, _ = pixels.shape
    image = Summary.Image(
      height=height,
      width=width,
      colorspace=3,
      encoded_image_string=_png(pixels),
    )
    self._tensorboard.file_writer.add_summary(
      Summary(value=[Summary.Value(tag=tag, image=image)]), step
    )

  def write_text(self, step: int, tag: str, markdown: str) -> None:
    """Writes a text for TensorBoard's text tab."""
    if self._enabled:
      self._tensorboard.add_text(tag, markdown, step)

  def flush(self) -> None:
    """Brings to the disk what was written so far.

    TensorBoard's events pass through a thread that cannot be waited for but
    by `close`: the latest ones may follow a few seconds later.
    """
    if self._enabled:
      self._jsonl.flush()
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes the files; nothing may be written afterwards."""
    if self._enabled:
      self._jsonl.close()
      self._tensorboard.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused) -> None:
    self.close()


def _png(pixels: np.ndarray) -> bytes:
  """A picture as a file, without a library of pictures."""
  height, width, _ = pixels.shape

  def chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + checksum.to_bytes(4)

  # Eight bits a channel, three channels; each line is stored as it is.
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  lines = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(lines.tobytes()))
    + chunk(b'IEND', b'')
  )


def last_step(workdir: str) -> int | None:
  """Latest step in a run's metrics.jsonl, None if there is none.

  Raises:
    ValueError: If the file cannot be read, or holds a line that is not an
      object of ours.
  """
  lines = _read_lines(os.path.join(workdir, 'metrics.jsonl'))
  return max((step for step, _ in lines), default=None)


def _read_lines(path: str) -> list[tuple[int, str]]:
  """Steps and lines of a file, without a half-written last line."""
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
  # A run killed in here keeps the old file.
  temporary = f'{path}.tmp'
  with open(temporary, 'w', encoding='utf-8') as f:
    f.writelines(kept)
  os.replace(temporary, path)
