import argparse
import json

import pytest

from abstractinator.benchmarks import timing


def test_calls_take_turns_and_the_first_ones_do_not_count():
  order = []
  calls = {name: lambda name=name: order.append(name) for name in 'ab'}
  found = timing.take_turns(calls, repeats=2, warmup=1)
  assert order == ['a', 'b'] * 3
  assert set(found.seconds) == {'a', 'b'}
  assert found.flops_per_second > 1e6 < found.bytes_per_second


def test_a_call_among_queued_ones_has_the_mean_duration(monkeypatch):
  calls, clock = [], iter([1.0, 4.0])
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(clock))
  assert timing.seconds(lambda: calls.append(0), queued=6) == 0.5
  assert len(calls) == 6


def test_a_table_lines_up_and_leaves_what_is_not_there_empty():
  rows = [{'name': 'a', 'ms': 1234.5}, {'name': 'bcd', 'n': 2, 'ms': 0.0125}]
  assert timing.markdown(rows).splitlines() == [
    '| name |     ms |  n |',
    '| ---- | -----: | -: |',
    '| a    |   1234 |    |',
    '| bcd  | 0.0125 |  2 |',
  ]


def test_lines_name_the_command_but_not_their_file(tmp_path, capsys):
  path = tmp_path / 'rows.jsonl'
  argv = ['x', '--json', str(path), '--size=B2 S8']
  report = timing.Report('bench', argv, str(path))
  report.add([{'ms': 1.5}])
  report.add([{'ms': 2.5}])
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line['ms'] for line in lines] == [1.5, 2.5]
  assert {line['command'] for line in lines} == {"bench x '--size=B2 S8'"}
  assert capsys.readouterr().out.count(' ms |') == 2


@pytest.mark.parametrize('text', ['0', '-1', 'many', '1.5'])
def test_counts_are_at_least_one(text):
  with pytest.raises(argparse.ArgumentTypeError, match='allowed: >= 1'):
    timing.positive(text)
  assert timing.positive('12') == 12
