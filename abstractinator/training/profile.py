"""A profile of some steps, for TensorBoard or XProf."""

import re
from typing import Self

import jax

from abstractinator.types import PyTree


class Profile:
  """Traces the steps of a window; see `jax.profiler`.

  Leaving it as a context ends a trace that is still open.

  Attributes:
    start: The first step to trace.
    stop: The one after the last; no later than the first for none.
  """

  def __init__(self, start: int, stop: int):
    self.start, self.stop = start, stop
    self._is_open = False

  @classmethod
  def parse(cls, text: str) -> Self:
    """Reads START:STOP.

    Raises:
      ValueError: If it is anything else.
    """
    found = re.fullmatch(r'(\d+):(\d+)', text)
    if not found or int(found[1]) >= int(found[2]):
      raise ValueError(
        f'--profile_steps: got {text!r}, allowed: START:STOP, such as 100:110'
      )
    return cls(int(found[1]), int(found[2]))

  def check(self, first_step: int, total_steps: int) -> None:
    """Raises ValueError if some of it lies outside of what is to be trained."""
    if self.start < first_step or self.stop > total_steps:
      raise ValueError(
        f'--profile_steps: got {self.start}:{self.stop}, allowed: within'
        f' {first_step}:{total_steps}, the steps of this run'
      )

  def before(self, step: int, directory: str) -> None:
    """Starts at its first step.

    Args:
      step: Steps done.
      directory: Where TensorBoard looks.
    """
    if step == self.start < self.stop:
      options = jax.profiler.ProfileOptions()
      # Functions of Python by the thousand hide what matters.
      options.python_tracer_level = 0
      jax.profiler.start_trace(directory, profiler_options=options)
      self._is_open = True

  def after(self, step: int, result: PyTree) -> None:
    """Ends after its last step, once that is computed.

    Args:
      step: Steps done.
      result: Of the last of them.
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

  def __exit__(self, *unused) -> None:
    self._close()


NO_PROFILE = Profile(0, 0)
