import io
import re

import pytest

from abstractinator.training.progress import Progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


VALUES = {'loss': 2.5, 'bytes/s': 12345.0}


def run(stream, steps, seconds_per_step, total_steps=100, values=VALUES):
  """Reports steps, of which the first takes a minute longer, to compile."""
  clock = Clock()
  progress = Progress(total_steps, stream=stream, clock=clock)
  clock.now += 60
  for step in steps:
    clock.now += seconds_per_step
    progress.update(step, values)
  return progress, clock


def test_plain_lines_come_every_few_seconds():
  stream = io.StringIO()
  progress, _ = run(stream, range(1, 12), 1.0)
  first, second, third = stream.getvalue().splitlines()
  # The first step includes the compilation, so it gives no estimate.
  assert first == 'step 1/100  loss 2.500  bytes/s 12.35k'
  assert second == '1m34s left  step 6/100  loss 2.500  bytes/s 12.35k'
  assert third == '1m29s left  step 11/100  loss 2.500  bytes/s 12.35k'
  progress.close()
  assert stream.getvalue().count('\n') == 3


def test_close_shows_what_was_held_back():
  stream = io.StringIO()
  progress, _ = run(stream, range(1, 4), 1.0)
  assert len(stream.getvalue().splitlines()) == 1
  progress.close()
  assert '  step 3/100  ' in stream.getvalue().splitlines()[-1]


def test_last_step_is_shown_at_once():
  stream = io.StringIO()
  run(stream, [98, 99, 100], 0.01)
  first, last = stream.getvalue().splitlines()
  assert first.startswith('step 98/100  ')
  assert last.startswith('0s left  step 100/100  ')


def test_lines_of_a_log_file_fit_into_80_columns():
  stream = io.StringIO()
  values = {'loss': 12.5, **{f'a long label {i}': 1.0 for i in range(9)}}
  run(stream, range(1, 12), 1000.0, total_steps=100000, values=values)
  *_, last = stream.getvalue().splitlines()
  assert last == (
    '27774h43m left  step 11/100000  loss 12.50  a long label 0 1.000'
  )
  # One more value would not have fitted.
  assert 80 - len('  a long label 1 1.000') < len(last) <= 80


def evaluate(progress, clock, step, seconds_per_batch, total, compilation=0.0):
  progress.pause()
  progress.evaluated(step, 0, total)
  clock.now += compilation
  for done in range(1, total + 1):
    clock.now += seconds_per_batch
    progress.evaluated(step, done, total)
  progress.resume()


def seconds_left(stream):
  line = stream.getvalue().splitlines()[-1]
  (minutes, seconds) = re.match(r'(?:(\d+)m)?(\d+)s left', line).groups()
  return 60 * int(minutes or 0) + int(seconds)


def test_time_left_does_not_jump_after_an_evaluation():
  """Evaluations of 4 batches after each 20 steps, the last one of 10."""
  stream, clock = io.StringIO(), Clock()

  def batches_after(step):
    return 0 if step >= 100 else 4 * (99 // 20 - step // 20) + 10

  progress = Progress(100, batches_after, stream, clock=clock)
  found = []
  for step in range(1, 101):
    clock.now += 6.0 + 60.0 * (step == 1)
    progress.update(step, {})
    if step > 1:
      found.append(seconds_left(stream))
    if step % 20 == 0 and step < 100:
      evaluate(progress, clock, step, 3.0, 4, compilation=90.0 * (step == 20))
  # Each step takes 6 s off, and the 4 batches 12 s more.
  expected = [
    6 * (100 - step) + 3 * batches_after(step - 1) for step in range(2, 101)
  ]
  assert found == expected


def test_batches_of_an_evaluation_are_counted():
  stream, clock = io.StringIO(), Clock()
  progress = Progress(4, lambda step: 0, stream, clock=clock)
  for step in (1, 2):
    clock.now += 10.0
    progress.update(step, {})
  evaluate(progress, clock, 2, 6.0, 3, compilation=50.0)
  evaluate(progress, clock, 2, 6.0, 1)
  assert stream.getvalue().splitlines()[2:] == [
    # Before one is measured, a batch counts as half a step of 10 s.
    '35s left  step 2/4  compiling the evaluation',
    '30s left  step 2/4  evaluating, batch 1/3',
    '26s left  step 2/4  evaluating, batch 2/3',
    '20s left  step 2/4  evaluating, batch 3/3',
    # What is compiled stays so.
    '26s left  step 2/4  evaluating, batch 0/1',
    '20s left  step 2/4  evaluating, batch 1/1',
  ]


def test_messages_in_a_log_file():
  stream = io.StringIO()
  progress, _ = run(stream, [1], 1.0)
  progress.message('checkpoint 1')
  assert stream.getvalue().splitlines()[1:] == ['checkpoint 1']


def shown(text):
  """Lines that a terminal shows after printing a text."""
  lines = ['']
  for part in text.replace('\r', '\0\r').replace('\n', '\0\n').split('\0'):
    if part.startswith('\n'):
      lines.append(part[1:])
    elif part.startswith('\r'):
      assert part.startswith('\r\x1b[K')
      lines[-1] = part[len('\r\x1b[K') :]
    else:
      lines[-1] += part
  return lines


def test_terminal_line_is_rewritten(monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  stream = Terminal()
  progress, _ = run(stream, [25, 50], 1.0)
  line = '50s left  step 50/100  loss 2.500  bytes/s 12.35k  [#####.....]'
  assert shown(stream.getvalue()) == [line]
  progress.message('checkpoint 50')
  assert shown(stream.getvalue()) == ['checkpoint 50', line]
  progress.close()
  assert shown(stream.getvalue()) == ['checkpoint 50', line, '']


def test_terminal_line_never_wraps(monkeypatch):
  monkeypatch.setenv('COLUMNS', '30')
  stream = Terminal()
  run(stream, [25, 50], 1.0)
  (line,) = shown(stream.getvalue())
  assert line == '50s left  step 50/100'


def test_terminal_is_not_redrawn_too_often():
  stream = Terminal()
  run(stream, range(1, 51), 0.01)
  assert 4 <= stream.getvalue().count('\r') <= 6


def test_message_before_the_first_step():
  stream = Terminal()
  progress = Progress(10, stream=stream)
  progress.message('hello')
  progress.close()
  assert shown(stream.getvalue()) == ['hello', '']


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (0.0, '0.000'),
    (0.12345, '0.1235'),
    (2.5, '2.500'),
    (999.94, '999.9'),
    (999.97, '1.000k'),
    (12345, '12.35k'),
    (-2e6, '-2.000M'),
    (3e9, '3.000G'),
    (4e12, '4.000T'),
    (4e15, '4000.T'),
    (float('nan'), 'nan'),
    (float('inf'), 'inf'),
  ],
)
def test_numbers_are_short(value, text):
  stream = io.StringIO()
  Progress(10, stream=stream).update(10, {'x': value})
  assert f'  x {text}' in stream.getvalue()


def test_other_processes_show_nothing():
  stream = io.StringIO()
  progress = Progress(10, stream=stream, enabled=False)
  progress.update(10, {'loss': 1.0})
  progress.message('text')
  progress.close()
  assert stream.getvalue() == ''


def test_standard_error_by_default(capsys):
  Progress(10).message('text')
  captured = capsys.readouterr()
  assert (captured.out, captured.err) == ('', 'text\n')
