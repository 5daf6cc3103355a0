"""Profiles of training steps, for TensorBoard or XProf."""

import re
from typing import Self

import jax

from abstractinator.types import PyTree


class Profile:
  """Profile of a range of steps, taken with `jax.profiler`.

  Leaving it as a context ends a trace that is still open.

  Attributes:
    start: Number of steps done before the first one that is traced.
    stop: Number of steps done after the last one that is traced; nothing is
      traced if it is not above `start`.
  """

  def __init__(self, start: int, stop: int):
    self.start, self.stop = start, stop
    self._is_open = False

  @classmethod
  def parse(cls, text: str) -> Self:
    """Returns the profile of `--profile_steps`.

    Args:
      text: START:STOP.

    Raises:
      ValueError: If the text has another form, or STOP is not above START.
    """
    found = re.fullmatch(r'(\d+):(\d+)', text)
    if not found or int(found[1]) >= int(found[2]):
      raise ValueError(
        f'--profile_steps: got {text!r}, allowed: START:STOP, such as 100:110'
      )
    return cls(int(found[1]), int(found[2]))

  def check(self, first_step: int, total_steps: int) -> None:
    """Checks that the steps are among those that will be trained.

    Args:
      first_step: Optimizer steps done before this process began.
      total_steps: Number of optimizer steps of the run.

    Raises:
      ValueError: If some of them are not.
    """
    if self.start < first_step or self.stop > total_steps:
      raise ValueError(
        f'--profile_steps: got {self.start}:{self.stop}, allowed: within'
        f' {first_step}:{total_steps}, the steps of this run'
      )

  def before(self, step: int, directory: str) -> None:
    """Starts the trace if the next step is the first one to trace.

    Args:
      step: Optimizer steps done.
      directory: Directory of the TensorBoard files.
    """
    if step == self.start < self.stop:
      options = jax.profiler.ProfileOptions()
      # Thousands of Python functions would hide the device's work.
      options.python_tracer_level = 0
      jax.profiler.start_trace(directory, profiler_options=options)
      self._is_open = True

  def after(self, step: int, result: PyTree) -> None:
    """Ends the trace if the last step to trace is done.

    Args:
      step: Optimizer steps done.
      result: Arrays that the last of them computes, waited for.
    """
    if self._is_open and step == self.stop:
      jax.block_until_ready(result)
      self._close()

  def _close(self) -> None:
    if self._is_open:
      self._is_open = False
      jax.profiler.stop_trace()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *unused: object) -> None:
    self._close()


NO_PROFILE = Profile(0, 0)
