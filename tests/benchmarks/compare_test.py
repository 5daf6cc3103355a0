import json

import pytest

from abstractinator.benchmarks import compare
from abstractinator.config import RunConfig
from configs import compare as compare_config

EVAL = {
  'step': 5,
  'eval/loss_total': 1.0,
  'eval/bytes_per_segment': 4.5,
  'eval/code_unigram_bits_per_byte': 2.0,
  'eval/expander_bits_per_byte': 1.25,
  'eval/end_bits_per_byte': 0.25,
  'eval/live_code_fraction': 0.5,
  'eval/teacher_forced_byte_accuracy': 0.8,
  'eval/free_running_byte_accuracy': 0.25,
}


@pytest.mark.parametrize('cell', compare.cells(), ids='-'.join)
def test_every_cell_has_a_config_of_about_1024_codes(cell):
  values = compare_config.get_config(','.join(cell))
  config = RunConfig.from_dict(json.loads(values.to_json_best_effort()))
  (level,) = config.model.levels
  assert level.segmentation.rule == cell[0]
  assert level.quantizer.kind == cell[1]
  assert level.quantizer.num_codes == 1024
  assert level.expander.context == cell[2]


def test_a_cell_that_is_done_counts_by_its_last_evaluation(tmp_path):
  first = EVAL | {'eval/expander_bits_per_byte': 9.0}
  lines = [first, {'step': 5, 'train/loss_total': 3.0}, EVAL, {'step': 6}]
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  # Nothing trains: there is no config of this cell.
  found = compare.result(tmp_path, ('no', 'such', 'cell'))
  assert found['total'] == 3.5
  assert found['bytes_per_segment'] == 4.5
  path.write_text(json.dumps(lines[1]))
  assert compare.last_evaluation(path) is None
  assert compare.last_evaluation(tmp_path / 'none') is None


def test_the_command_prints_a_row_for_each_cell(tmp_path, capsys):
  for cell in compare.cells():
    run = tmp_path / '-'.join(cell)
    run.mkdir()
    (run / 'metrics.jsonl').write_text(json.dumps(EVAL))
  compare.main([f'--runs={tmp_path}', '--jobs=2'])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 + 2 + len(compare.cells())
  assert '| entropy_delta' in lines[4]
  assert '| **3.500** ' in lines[-1]


def test_the_best_of_a_column_is_bold():
  values = {k.removeprefix('eval/'): v for k, v in EVAL.items()}
  good = values | {'total': 3.0, 'teacher_forced_byte_accuracy': 0.9}
  bad = values | {'total': 4.0, 'free_running_byte_accuracy': 0.125}
  cells = compare.cells()[:2]
  first, second = compare.rows(dict(zip(cells, (good, bad), strict=True)))
  assert tuple(first.values())[:3] == cells[0]
  assert first['sum, bits/byte'] == '**3.000**'
  assert first['teacher-forced'] == '**90.0%**'
  assert first['free-running'] == '**25.0%**'
  assert first['codes'] == '2.000'
  assert not any('**' in str(cell) for cell in second.values())
