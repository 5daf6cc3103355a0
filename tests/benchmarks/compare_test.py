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


def test_the_last_evaluation_counts(tmp_path):
  first = EVAL | {'eval/expander_bits_per_byte': 9.0}
  lines = [first, {'step': 5, 'train/loss_total': 3.0}, EVAL, {'step': 6}]
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  found = compare.final(tmp_path)
  assert found['total'] == 3.5
  assert found['bytes_per_segment'] == 4.5
  path.write_text(json.dumps(lines[1]))
  assert compare.final(tmp_path) is None


def test_the_best_of_a_column_is_bold(tmp_path):
  values = {k.removeprefix('eval/'): v for k, v in EVAL.items()}
  good = values | {'total': 3.0, 'teacher_forced_byte_accuracy': 0.9}
  bad = values | {'total': 4.0, 'free_running_byte_accuracy': 0.125}
  cells = compare.cells()[:2]
  text = compare.table(dict(zip(cells, (good, bad), strict=True)))
  head, _, first, second = text.splitlines()
  assert head.count('|') == first.count('|') == second.count('|')
  assert first.startswith(f'| {" | ".join(cells[0])} |')
  assert '**3.000**' in first
  assert '**90.0%**' in first
  assert '**25.0%**' in first
  assert '**' not in second
