import json
import types

import numpy as np
import pytest

from abstractinator.training import step_metrics as window_module
from abstractinator.training.step_metrics import Window
from abstractinator.types import Mean


@pytest.fixture
def clock(monkeypatch):
  now = types.SimpleNamespace(seconds=100.0)
  fake = types.SimpleNamespace(monotonic=lambda: now.seconds)
  monkeypatch.setattr(window_module, 'time', fake)
  return now


def metrics(num_bytes):
  count = np.float32(num_bytes)
  # From which `metrics.num_bytes` knows how many there were.
  return {'entropy_model_bits_per_byte': Mean(2 * count, count)}


def step(window, clock, seconds, waiting=0.0):
  with window.input():
    clock.seconds += waiting
  clock.seconds += seconds
  window.add(metrics(10))


def test_time_is_split(clock):
  window = Window()
  step(window, clock, 50.0, waiting=40.0)  # Compilation.
  assert window.step_seconds() is None
  for _ in range(4):
    step(window, clock, 0.75, waiting=0.25)
  window.pause()
  with window.apart('eval'):
    clock.seconds += 7.0
  with window.apart('checkpoint'):
    clock.seconds += 3.0
  with window.apart('checkpoint'):
    clock.seconds += 1.0
  window.resume()
  assert window.times() == pytest.approx(
    dict(
      step_seconds=1.0,
      input_wait_seconds=0.25,
      input_wait_fraction=0.25,
      bytes_per_second=10.0,
      eval_seconds=7.0,
      checkpoint_seconds=4.0,
    )
  )


def test_a_window_starts_empty(clock):
  window = Window()
  step(window, clock, 1.0)
  step(window, clock, 1.0, waiting=1.0)
  window.restart()
  step(window, clock, 2.0)
  assert window.times() == pytest.approx(
    dict(
      step_seconds=2.0,
      input_wait_seconds=0.0,
      input_wait_fraction=0.0,
      bytes_per_second=5.0,
    )
  )


def test_a_window_goes_on_where_another_process_left_it():
  def step(value):
    value = np.float32(value)
    return {
      'loss_total': Mean(value, np.float32(3)),
      'entropy_model_bits_per_byte': Mean(value, np.float32(3)),
      'code_counts': Mean(np.array([value, 1], np.float32), np.float32(1)),
    }

  whole, first = Window(), Window()
  for window in (whole, first):
    window.add(step(0.1))
  second = Window(json.loads(json.dumps(first.to_json())))
  for window in (whole, second):
    window.add(step(0.7))
  assert second.summary() == whole.summary()
  assert second.total['code_counts'].total.dtype == np.float32
  whole.restart()
  assert whole.to_json() == {}
