import json

import jax.numpy as jnp
import pytest

from abstractinator.benchmarks import (
  attention,
  cross,
  nearest_code,
  op,
  segment_pool,
  timing,
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Products and copies small enough to test with."""
  monkeypatch.setattr(timing, '_SIZES', {'cpu': (64,)})
  monkeypatch.setattr(timing, '_COPIED_BYTES', {'cpu': 1 << 12})


def problem(wrong):
  """A line, and what should be the same."""
  return op.Problem(
    op='twice',
    size=dict(N=3),
    functions={'reference': lambda x: x + x, 'xla': wrong},
    args=(jnp.arange(3.0),),
    is_differentiated=True,
    flops=3,
    num_bytes=24,
  )


def test_rows_hold_what_was_measured():
  reference, xla = op.measure(problem(lambda x: 2 * x), repeats=2)
  assert (xla['op'], xla['size'], xla['dtype']) == ('twice', 'N3', 'float32')
  assert (reference['error'], xla['error']) == (None, 0.0)
  assert reference['forward x'] == reference['both x'] == 1
  ratio = reference['both ms'] / xla['both ms']
  assert xla['both x'] == pytest.approx(ratio)
  assert (xla['GFLOP'], xla['MB']) == (3e-9, 24e-6)
  assert xla['roofline'] > 0


@pytest.mark.parametrize(
  'wrong',
  [
    lambda x: 2.001 * x,
    lambda x: jnp.where(x > 1, jnp.nan, 2 * x),
    # Only the slope is wrong.
    lambda x: 2 * x + jnp.sin(1e5 * x) * 1e-7,
  ],
  ids=['value', 'not a number', 'gradient'],
)
def test_what_is_wrong_is_not_timed(wrong):
  with pytest.raises(ValueError, match=r'twice by xla: is off by .*1e-05'):
    op.measure(problem(wrong), repeats=1)


RUNS = {
  'segment_pool': (segment_pool.run, {'xla', 'xla_deterministic'}),
  'cross': (cross.run, {'gather', 'halo'}),
  'nearest_code': (nearest_code.run, {'xla'}),
  'attention': (attention.run, {'jax.nn', 'xla'}),
}


@pytest.mark.parametrize('name', RUNS)
def test_prints_tables_and_writes_lines(name, tmp_path, capsys):
  run, implementations = RUNS[name]
  path = tmp_path / 'lines.jsonl'
  op.main(name, run, ['--small', '--repeats=1', f'--json={path}'])
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  command = f'python -m abstractinator.benchmarks.{name} --small --repeats=1'
  assert {row['command'] for row in rows} == {command}
  assert {row['implementation'] for row in rows} == {
    'reference',
    *implementations,
  }
  assert all(0 <= row['error'] < 1e-5 for row in rows if row.get('error'))
  printed = capsys.readouterr().out
  assert command in printed
  assert printed.count('\n| ') == len(rows) + 2 * printed.count('\n\n|')


def test_arguments_are_checked(capsys):
  with pytest.raises(SystemExit) as stopped:
    op.main('cross', cross.run, ['--repeats=0'])
  assert stopped.value.code == 2
  assert '--repeats: got 0, allowed: >= 1' in capsys.readouterr().err
