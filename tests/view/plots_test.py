"""Pictures: what they show of what they are given."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from abstractinator.view import plots

PATH = pathlib.Path(__file__).parents[2] / 'docs/images/make.py'
SPEC = importlib.util.spec_from_file_location('make_pictures', PATH)
make = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)


def write(folder, *lines):
  text = '\n'.join(map(json.dumps, lines))
  (folder / 'metrics.jsonl').write_text(text)
  return folder


def drawn(axes):
  return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


# matplotlib comes with the extra `docs`.
@pytest.mark.nightly
def test_curves_are_the_costs_of_each_level(tmp_path):
  flat, total = 'level0/entropy_model_bits_per_byte', 'total_bits_per_byte'
  write(
    tmp_path,
    {'step': 1, f'train/{total}': 9.0},
    {'step': 1, f'eval/{flat}': 4.0, f'eval/{total}': 5.0},
    {'step': 2, f'eval/{flat}': 3.0, f'eval/{total}': 3.5, 'eval/x': 1.0},
  )
  (axes,) = plots.curves(tmp_path).axes
  assert drawn(axes) == {
    'level0: entropy model (flat)': [[1, 4], [2, 3]],
    'total': [[1, 5], [2, 3.5]],
  }
  (axes,) = plots.curves(tmp_path, 'train').axes
  assert drawn(axes) == {'total': [[1, 9]]}


@pytest.mark.nightly
def test_a_text_is_cut_where_segments_start():
  starts = {'stride': np.array([1, 0, 1, 0, 0], bool)}
  top, bottom = plots.cuts(b'ab \xc3c', starts, np.arange(5.0)).axes
  assert [text.get_text() for text in top.texts] == ['a', 'b', '␣', '·', 'c']
  assert [bar.get_x() for bar in top.patches] == [0, 2]
  assert [bar.get_width() for bar in top.patches] == [2, 3]
  assert [bar.get_height() for bar in bottom.patches] == [0, 1, 2, 3, 4]


@pytest.mark.nightly
def test_the_frontier_is_sorted_by_rate(tmp_path):
  path = tmp_path / 'runs.csv'
  path.write_text(
    'name,' + ','.join(plots.Result._fields) + '\n'
    'a,K,2.0,3.0,2.5,0.9\nb,K,1.0,2.75,2.5,0.5\n'
  )
  figure = make.frontier(make.argparse.Namespace(source=str(path)))
  left, right = figure.axes
  assert drawn(left)['K'] == [[1, 2.75], [2, 3]]
  assert drawn(right)['K'] == [[1, 50], [2, 90]]


def test_a_table_without_a_column_is_refused(tmp_path):
  path = tmp_path / 'runs.csv'
  path.write_text('name,group\na,K\n')
  with pytest.raises(ValueError, match=r'line 2: .*code_bits_per_byte'):
    make.frontier(make.argparse.Namespace(source=str(path)))


def test_wrong_metrics_are_refused(tmp_path):
  write(tmp_path, {'step': 1, 'eval/x': 1.0})
  with pytest.raises(ValueError, match='no bits per byte below eval/'):
    plots.curves(tmp_path)
  write(tmp_path, [2], {'step': 1})
  with pytest.raises(ValueError, match=r':1: got .* allowed: a JSON object'):
    plots.curves(tmp_path)


@pytest.mark.nightly
def test_a_rule_is_calibrated_to_a_mean_length():
  text, bits_N = b'aa bb cc dd ', np.ones(12, np.float32)
  starts_N = make.starts_of('stride', text, bits_N, bits_N, 4.0)
  assert np.flatnonzero(starts_N).tolist() == [0, 4, 8]
  starts_N = make.starts_of('space', text, bits_N, bits_N, 3.0)
  assert np.flatnonzero(starts_N).tolist() == [0, 3, 6, 9]
