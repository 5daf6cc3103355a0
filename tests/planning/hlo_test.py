"""Compiled programs, parsed from their text."""

import pytest

from abstractinator.planning.hlo import HloProgram

TEXT = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%fused (param_0: f32[10,4], param_1: s32[]) -> f32[1,4] {
  %param_0 = f32[10,4]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,4]{1,0} dynamic-slice(%param_0, %param_1, %zero)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%test (loop: (s32[], f32[10,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(7)
  %loop = (s32[], /*index=1*/f32[10,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%loop), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%body (state: (s32[], f32[10,4])) -> (s32[], f32[10,4]) {
  %state = (s32[], f32[10,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state), index=0
  %rows = f32[10,4]{1,0} get-tuple-element(%state), index=1
  %near = f32[1,4]{1,0:T(8,128)S(1)} fusion(%rows, %j), kind=kLoop, calls=%fused
  %one = s32[] constant(1)
  %next = s32[] add(%j, %one)
  ROOT %out = (s32[], f32[10,4]{1,0}) tuple(%next, %rows)
}

ENTRY %main (x: f32[10,4], y: bf16[3]) -> f32[10,4] {
  %x = f32[10,4]{1,0} parameter(0), sharding={replicated}
  %y = bf16[3]{0} parameter(1)
  %start = s32[] constant(0)
  %init = (s32[], f32[10,4]{1,0}) tuple(%start, %x)
  %while.1 = (s32[], f32[10,4]{1,0}) while(%init), condition=%test, body=%body
  %found = f32[10,4]{1,0} get-tuple-element(%while.1), index=1
  ROOT %all = f32[10,4]{1,0} all-reduce(%found), replica_groups=[2,4]<=[8]
}
"""


def test_instructions():
  program = HloProgram(TEXT)
  assert (program.entry, program.num_chips) == ('main', 8)
  near = program.computations['body']['near']
  assert near.opcode == 'fusion'
  # It lies in a nearer memory.
  assert (near.num_bytes, near.hbm_bytes) == (16, 0)
  assert near.operands == ('rows', 'j')
  assert near.called == ('fused',)
  loop = program.computations['main']['while.1']
  assert (loop.num_bytes, loop.hbm_bytes) == (164, 164)
  assert program.computations['test'].root.name == 'lt'


@pytest.mark.parametrize(
  ('array', 'num_bytes'),
  [
    ('pred[10]{0}', 10),
    ('s4[3]{0}', 2),
    ('bf16[3]{0}', 6),
    ('f8e4m3fn[5]{0}', 5),
    ('c64[2,3]{1,0}', 48),
    ('f32[]', 4),
    ('token[]', 0),
  ],
)
def test_bytes_of_each_type(array, num_bytes):
  program = HloProgram(
    f'ENTRY %main (x: t) -> t {{\n  ROOT %x = {array} parameter(0)\n}}\n'
  )
  assert program.computations['main'].root.num_bytes == num_bytes


def test_a_loop_counts_as_often_as_it_runs():
  program = HloProgram(TEXT)
  times = {x.name: n for _, x, n in program.executed}
  assert (times['near'], times['lt'], times['all']) == (7, 7, 1)
  # The inside of a fusion and the sum of an all-reduce do not count.
  assert 'slice' not in times
  assert 'add' not in times
  assert program.unbounded_loops == 0


def test_the_length_that_xla_writes_wins():
  known = '"known_trip_count":{"n":"3"}'
  text = TEXT.replace('body=%body', f'body=%body, backend_config={{{known}}}')
  times = {x.name: n for _, x, n in HloProgram(text).executed}
  assert times['near'] == 3


@pytest.mark.parametrize(
  'edit', [('direction=LT', 'direction=NE'), ('constant(7)', 'parameter(1)')]
)
def test_a_loop_of_unknown_length_is_reported(edit):
  program = HloProgram(TEXT.replace(*edit))
  assert program.unbounded_loops == 1
  assert {x.name: n for _, x, n in program.executed}['near'] == 1


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    HloProgram('HloModule x')
