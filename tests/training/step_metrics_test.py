import json

import numpy as np
import pytest

from abstractinator.objective.by_level import ByLevel
from abstractinator.training.step_metrics import StepMetrics
from abstractinator.types import Mean


class Clock:
  def __init__(self):
    self.seconds = 100.0

  def __call__(self):
    return self.seconds


def step(steps, clock, seconds, waiting=0.0):
  """Takes a step on 10 bytes."""
  with steps.input():
    clock.seconds += waiting
  clock.seconds += seconds
  mean = Mean(np.float32(20), np.float32(10))
  steps.add(ByLevel(({'entropy_model_bits_per_byte': mean},)))


def test_time_is_split():
  clock = Clock()
  steps = StepMetrics(clock=clock)
  step(steps, clock, 50.0, waiting=40.0)  # Compilation.
  assert steps.step_seconds() is None
  for _ in range(4):
    step(steps, clock, 0.75, waiting=0.25)
  steps.pause()
  with steps.apart('eval'):
    clock.seconds += 7.0
  with steps.apart('checkpoint'):
    clock.seconds += 3.0
  with steps.apart('checkpoint'):
    clock.seconds += 1.0
  steps.resume()
  assert steps.times() == pytest.approx(
    dict(
      step_seconds=1.0,
      input_wait_seconds=0.25,
      input_wait_fraction=0.25,
      bytes_per_second=10.0,
      eval_seconds=7.0,
      checkpoint_seconds=4.0,
    )
  )


def test_after_a_restart_nothing_is_left():
  clock = Clock()
  steps = StepMetrics(clock=clock)
  step(steps, clock, 1.0)
  step(steps, clock, 1.0, waiting=1.0)
  steps.restart()
  step(steps, clock, 2.0)
  assert steps.times() == pytest.approx(
    dict(
      step_seconds=2.0,
      input_wait_seconds=0.0,
      input_wait_fraction=0.0,
      bytes_per_second=5.0,
    )
  )


def test_sums_continue_where_another_process_left_them():
  def step(value):
    value = np.float32(value)
    level = {
      'entropy_model_bits_per_byte': Mean(value, np.float32(3)),
      'code_counts': Mean(np.array([value, 1], np.float32), np.float32(1)),
    }
    return ByLevel((level,), {'loss_total': Mean(value, np.float32(3))})

  whole, first = StepMetrics(), StepMetrics()
  for steps in (whole, first):
    steps.add(step(0.1))
  second = StepMetrics(json.loads(json.dumps(first.to_json())))
  for steps in (whole, second):
    steps.add(step(0.7))
  assert second.summary() == whole.summary()
  assert second.total.levels[0]['code_counts'].total.dtype == np.float32
  whole.restart()
  assert whole.to_json() == {}


def test_the_progress_line_shows_levels_and_the_whole():
  def shown(levels, whole):
    mean = lambda x: Mean(np.float32(x), np.float32(1))  # noqa: E731
    steps = StepMetrics()
    found = ByLevel(levels, whole).apply(
      lambda x: {name: mean(value) for name, value in x.items()}
    )
    steps.add(found)
    # The first step, which is compiled, has no speed.
    assert 'bytes/s' not in steps.shown()
    assert 'bytes_per_second' not in steps.times()
    steps.add(found)
    return steps.shown()

  level = {'entropy_model_bits_per_byte': 2.0, 'expander_bits_per_byte': 1.0}
  one = shown((level,), {'loss_total': 5.0, 'gradient_norm': 7.0})
  assert list(one) == ['loss', 'entropy bpb', 'expander bpb', 'bytes/s']
  assert (one['loss'], one['expander bpb']) == (5.0, 1.0)
  parts = {f'top_lm_{x}_bits_per_byte': 1.0 for x in ('code', 'end')}
  whole = {'loss_total': 5.0, 'total_bits_per_byte': 9.0, **parts}
  three = shown((level,) * 3, whole)
  assert list(three) == [
    'loss',
    'total bpb',
    'expander bpb 0',
    'expander bpb 1',
    'bytes/s',
    'codes bpb',
  ]
