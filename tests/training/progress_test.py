import io

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


def run(stream, steps, seconds_per_step, start_step=0, total_steps=100):
  """Reports steps, of which the first takes a minute longer, to compile."""
  clock = Clock()
  progress = Progress(total_steps, start_step, stream, clock=clock)
  clock.now += 60
  for step in steps:
    clock.now += seconds_per_step
    progress.update(step, {'loss': 2.5, 'bytes/s': 12345.0})
  return progress, clock


def test_plain_lines_come_every_few_seconds():
  stream = io.StringIO()
  progress, _ = run(stream, range(1, 12), 1.0)
  first, second, third = stream.getvalue().splitlines()
  # The first step includes the compilation, so it gives no estimate.
  assert first == 'step 1/100  loss 2.500  bytes/s 12.35k'
  assert second == 'step 6/100  loss 2.500  bytes/s 12.35k  1m34s left'
  assert third == 'step 11/100  loss 2.500  bytes/s 12.35k  1m29s left'
  progress.close()
  assert stream.getvalue().count('\n') == 3


def test_close_shows_what_was_held_back():
  stream = io.StringIO()
  progress, _ = run(stream, range(1, 4), 1.0)
  assert len(stream.getvalue().splitlines()) == 1
  progress.close()
  assert stream.getvalue().splitlines()[-1].startswith('step 3/100 ')


def test_last_step_is_shown_at_once():
  stream = io.StringIO()
  run(stream, [98, 99, 100], 0.01)
  lines = stream.getvalue().splitlines()
  assert [line.split()[1] for line in lines] == ['98/100', '100/100']
  assert lines[-1].endswith('0s left')


def test_time_left_after_resumption():
  stream = io.StringIO()
  run(stream, [910, 920], 5.0, start_step=900, total_steps=1000)
  # 10 steps took 5 s, 80 are left; another process took the 900 before.
  assert stream.getvalue().splitlines()[-1].endswith('  40s left')


def test_estimate_counts_own_steps():
  stream = io.StringIO()
  run(stream, [910, 920], 40.0, start_step=900, total_steps=1000)
  # 10 steps took 40 s, without the compilation.
  assert stream.getvalue().endswith('  5m20s left\n')


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
  bar = '[' + '#' * 12 + '.' * 12 + ']'
  line = f'step 50/100  {bar}  loss 2.500  bytes/s 12.35k  2s left'
  assert shown(stream.getvalue()) == [line]
  progress.message('checkpoint 50')
  assert shown(stream.getvalue()) == ['checkpoint 50', line]
  progress.close()
  assert shown(stream.getvalue()) == ['checkpoint 50', line, '']


def test_terminal_line_never_wraps(monkeypatch):
  monkeypatch.setenv('COLUMNS', '30')
  stream = Terminal()
  run(stream, [25], 1.0)
  (line,) = shown(stream.getvalue())
  assert len(line) == 29


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
