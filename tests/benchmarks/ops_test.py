import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import pytest

from abstractinator.benchmarks import ops
from abstractinator.types import Array

SIZES = {
  'attention': ('B2 S64 H2 A8 W16', {'jax.nn', 'xla'}),
  'segment_cross': ('B2 S64 H2 A8 lookback3', {'gather', 'halo'}),
  'segment_pool': ('B2 S64 H2 A8 Q1', {'xla'}),
  'nearest_code': ('N20 K8 C4', {'xla'}),
}


@pytest.mark.parametrize('op', SIZES)
def test_every_op_is_held_and_timed(op, tmp_path):
  size, names = SIZES[op]
  path = tmp_path / 'rows.jsonl'
  ops.main([op, f'--size={size}', '--repeats=1', f'--json={path}'])
  rows = {}
  for line in path.read_text().splitlines():
    row = json.loads(line)
    rows[row['implementation']] = row
  assert set(rows) == {'reference', *names}
  reference = rows.pop('reference')
  assert (reference['op'], reference['error']) == (op, None)
  for row in rows.values():
    assert 0 <= row['error'] < 1e-5
    ratio = reference['forward ms'] / row['forward ms']
    assert row['forward x'] == pytest.approx(ratio)
    assert row['roofline'] > 0
    assert ('both ms' in row) == (op != 'nearest_code')


@pytest.mark.parametrize('capability', ['8.0', '9.0'])
def test_kernels_for_hopper_are_timed_on_hopper_alone(monkeypatch, capability):
  problem = ops.make_problem('attention', 'B1 S4 H1 A2 W2', 'bfloat16')
  device = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  names = ops.implementations(problem, has_oracle=True)
  assert {'xla', 'pallas_triton', 'cudnn'} < set(names)
  assert ('mosaic_gpu' in names) == (capability == '9.0')


def twice(wrong):
  """Returns the problem of doubling, with a second argument of no use."""

  def function(x: Array, y: Array, implementation: str) -> Array:
    return (x + x if implementation == 'reference' else wrong(x)) + 0 * y

  args = jnp.arange(3.0), jnp.zeros(3)
  return ops.Problem('twice', 'N3', function, args, flops=3, num_bytes=24)


def test_a_right_result_has_no_error():
  problem = twice(lambda x: 2 * x)
  programs = ops.compile_programs(problem, ['reference', 'xla'])
  assert ops.check(problem, programs) == {'xla': 0.0}


@pytest.mark.parametrize(
  'wrong',
  [
    lambda x: 2.001 * x,
    lambda x: jnp.where(x > 1, jnp.nan, 2 * x),
    # Only the slope is wrong.
    lambda x: 2 * x + jnp.sin(1e5 * x) * 1e-7,
  ],
  ids=['value', 'NaN', 'gradient'],
)
def test_a_wrong_result_is_not_timed(wrong):
  with pytest.raises(ValueError, match=r'twice by xla: is off by .*1e-05'):
    ops.measure([twice(wrong)], ['reference', 'xla'], repeats=1)


def test_without_the_oracle_several_sizes_take_turns():
  problems = [
    ops.make_problem('nearest_code', size, 'float32')
    for size in ('N20 K8 C4', 'N40 K8 C4')
  ]
  rows = ops.measure(problems, ['xla'], repeats=1)
  assert [row['size'] for row in rows] == ['N20 K8 C4', 'N40 K8 C4']
  assert [row['GFLOP'] for row in rows] == pytest.approx([1.28e-6, 2.56e-6])
  assert all(row['error'] is None and 'forward x' not in row for row in rows)


def test_attention_counts_visible_pairs_alone():
  window, full = (
    ops.make_problem('attention', f'B1 S4 H1 A2 {further}', 'float32')
    for further in ('W2', '')
  )
  assert (window.flops, full.flops) == (8 * (1 + 2 + 2 + 2), 8 * 10)
  assert dataclasses.replace(window, size='').num_bytes == 4 * 4 * 2 * 4


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['softmax'], "OP: got 'softmax', allowed: attention"),
    (['--size=N20'], '--size: got it for 0 ops'),
    (['attention', '--repeats=0'], "got '0', allowed: >= 1"),
  ],
)
def test_arguments_are_checked(argv, message, capsys):
  with pytest.raises(SystemExit, match='2'):
    ops.main(argv)
  assert message in capsys.readouterr().err
