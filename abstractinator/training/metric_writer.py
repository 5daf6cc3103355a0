"""Metrics on disk: TensorBoard event files and a file of JSON lines."""

import contextlib
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from abstractinator.evaluation import units
from abstractinator.runs import metric_lines


class MetricWriter:
  """Writer of a run's metrics; on all but one process it does nothing.

  WORKDIR/metrics.jsonl has one object per call of `write_scalars`: `step` and
  the scalars under their tags. WORKDIR/tensorboard has the same and more.

  All files are written by the caller's thread. A thread of its own, such as
  `tensorboardX.SummaryWriter` has, dies with the first error of the disk, and
  then nothing takes what the training loop hands over.

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
        step and numbers.
    """
    self.tensorboard_path = os.path.join(workdir, 'tensorboard')
    self._jsonl_path = metric_lines.path_of(workdir)
    self._events: RecordWriter | None = None
    self._described: set[str] = set()
    self._end: Summary | None = None
    if not enabled:
      return
    os.makedirs(self.tensorboard_path, exist_ok=True)
    metric_lines.drop_after(workdir, resume_step)
    # Line buffering: a killed run leaves whole lines.
    self._jsonl = open(self._jsonl_path, 'a', buffering=1, encoding='utf-8')
    # A run that resumes within a second does not overwrite its own file.
    name = f'{int(time.time())}.{socket.gethostname()}.{time.time_ns()}'
    self._events = RecordWriter(
      os.path.join(self.tensorboard_path, f'events.out.tfevents.{name}')
    )
    self._write_event(Event(file_version='brain.Event:2'))
    # TensorBoard then drops what an earlier attempt wrote for later steps.
    start = SessionLog(status=SessionLog.START)
    self._write_event(Event(step=resume_step + 1, session_log=start))

  def _write_event(self, event: Event) -> None:
    if self._events is not None:
      event.wall_time = time.time()
      with _naming(self._events.path):
        self._events.write(event.SerializeToString())

  def _write_summary(self, step: int, values: Summary) -> None:
    self._write_event(Event(step=step, summary=values))

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes named numbers of one step.

    Args:
      step: Optimizer step.
      scalars: Values on the host, by tag. Values that are not finite become
        null in the JSON lines, since JSON has no NaN.
    """
    values = {tag: float(value) for tag, value in scalars.items()}
    for tag, value in values.items():
      # TensorBoard takes the description of a tag from its first value.
      about = '' if tag in self._described else units.describe(tag)
      self._described.add(tag)
      scalar = summary.scalar(tag, value, summary_description=about)
      self._write_summary(step, scalar)
    if self._events is not None:
      with _naming(self._jsonl_path):
        self._jsonl.write(metric_lines.to_text({'step': step, **values}))

  def write_layout(self, tags: Collection[str]) -> None:
    """Writes charts of the figures that matter most, for "Custom Scalars".

    Args:
      tags: Tags of the held-out figures of the run.
    """
    charts = {
      title: ['Multiline', [rf'(eval|train)/(level\d+/)?{name}$']]
      for name, title in units.first(tags).items()
    }
    layout = summary.custom_scalars({'What matters most': charts})
    self._write_summary(0, layout)

  def write_settings(self, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a run, for TensorBoard's "HParams".

    Args:
      settings: Values by path.
    """
    # None would be left out.
    values = {
      path: x if isinstance(x, bool | int | float) else str(x)
      for path, x in settings.items()
    }
    # `SummaryWriter.add_hparams` would write them as a run of its own. The
    # first of the three summaries, a list of the settings, is left out: of
    # several runs TensorBoard takes one list, and without one it makes a list
    # of the settings of all runs.
    _, start, self._end = summary.hparams(values, {})
    self._write_summary(0, start)

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
    histogram = summary.histogram_raw(
      tag,
      min=values[0],
      max=values[-1],
      num=counts.sum(),
      sum=(counts * values).sum(),
      sum_squares=(counts * values**2).sum(),
      bucket_limits=edges[1:].tolist(),
      bucket_counts=counts.tolist(),
    )
    self._write_summary(step, histogram)

  def write_image(self, step: int, tag: str, pixels: np.ndarray) -> None:
    """Writes a picture.

    Args:
      step: Optimizer step.
      tag: Name of the picture.
      pixels: Colors, [height, width, 3] uint8.
    """
    image = summary.image(tag, pixels, dataformats='HWC')
    self._write_summary(step, image)

  def write_text(self, step: int, tag: str, markdown: str) -> None:
    """Writes a Markdown text for TensorBoard's text tab."""
    self._write_summary(step, summary.text(tag, markdown))

  def flush(self) -> None:
    """Waits until all that was written is on the disk.

    Raises:
      OSError: If it cannot be written.
    """
    if self._events is not None:
      with _naming(self._jsonl_path):
        self._jsonl.flush()
        os.fsync(self._jsonl.fileno())
      with _naming(self._events.path):
        self._events.flush()

  def close(self) -> None:
    """Flushes and closes the files; nothing may be written afterwards.

    Raises:
      OSError: If something cannot be written; the files are closed then, too.
    """
    if self._events is None:
      return
    try:
      self.flush()
    finally:
      for file in (self._jsonl, self._events):
        # What is wrong with the disk is told by `flush`.
        with contextlib.suppress(OSError):
          file.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
    if kind is None and self._end is not None:
      self._write_summary(0, self._end)
    self.close()


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
  """Adds the path to errors of writing, which lack it."""
  try:
    yield
  except OSError as error:
    raise OSError(f'{path}: cannot be written ({error.strerror})') from error
