"""Collectives, memory traffic and roofline of compiled programs."""

import math

import pytest

from abstractinator.planning import cost
from abstractinator.planning.hlo import HloProgram
from abstractinator.runs.chips import CHIPS, chip_of
from tests.planning.hlo_test import TEXT

COLLECTIVES = """\
HloModule jit_step, num_partitions=8

%scattered (p: f32[16]) -> f32[4] {
  %p = f32[16]{0} parameter(0)
  %zero = s32[] constant(0)
  %whole = f32[16]{0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %part = f32[4]{0} dynamic-slice(%whole, %zero)
}

ENTRY %main (x: f32[16]) -> f32[4] {
  %x = f32[16]{0} parameter(0)
  %gathered = (f32[16]{0}, f32[64]{0}) all-gather-start(%x), GROUPS
  %done = f32[64]{0} all-gather-done(%gathered)
  %moved = f32[16]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %all-reduce-scatter.1 = f32[4]{0} fusion(%x), calls=%scattered
}
"""


@pytest.mark.parametrize(
  ('groups', 'size'),
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', 4),
    ('replica_groups=[4,2]<=[8]', 2),
    ('replica_groups=[1,8]<=[4,2]T(1,0)', 8),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
    ('replica_groups={}', 8),
    ('replica_groups=[8,1]<=[8]', 1),
  ],
)
def test_what_collectives_send(groups, size):
  found = cost.collectives(HloProgram(COLLECTIVES.replace('GROUPS', groups)))
  assert set(found) == {'all-gather', 'collective-permute', 'reduce-scatter'}
  gather = found['all-gather']
  assert (gather.count, gather.operand_bytes) == (1, 64)
  # Each chip passes on all parts but the last.
  assert gather.sent_bytes == 64 * (size - 1)
  assert found['collective-permute'].sent_bytes == 64
  # Each chip keeps a part of the sum, so half of an all-reduce is sent.
  assert found['reduce-scatter'].sent_bytes == 64 * 3 / 4


def test_a_collective_in_a_loop_counts_each_time():
  inside = '  %one = s32[] constant(1)\n'
  more = (
    '  %every = f32[10,4]{1,0} all-reduce(%rows), replica_groups=[1,8]<=[8],'
    ' to_apply=%sum\n'
  )
  found = cost.collectives(HloProgram(TEXT.replace(inside, inside + more)))
  reduced = found['all-reduce']
  assert (reduced.count, reduced.operand_bytes) == (8, 8 * 160)
  assert reduced.sent_bytes == pytest.approx(
    160 * 2 * 3 / 4 + 7 * 160 * 2 * 7 / 8
  )


def test_memory_traffic():
  # Each round reads a slice of a row and an index; its result stays near.
  body = 16 + 4 + 3 * 4
  condition = 2 * 4 + 1
  assert (
    cost.memory_traffic(HloProgram(TEXT)) == 7 * (body + condition) + 2 * 160
  )


def test_an_update_in_place_writes_what_it_updates():
  text = TEXT.replace(
    'f32[1,4]{1,0} dynamic-slice(%param_0, %param_1, %zero)',
    'f32[10,4]{1,0} dynamic-update-slice(%param_0, %row, %param_1, %zero)',
  ).replace(
    '  %zero = s32[] constant(0)\n',
    '  %zero = s32[] constant(0)\n  %row = f32[1,4]{1,0} broadcast(%zero)\n',
  )
  text = text.replace(
    '%near = f32[1,4]{1,0:T(8,128)S(1)}', '%near = f32[10,4]{1,0}'
  )
  body = 16 + 4 + 3 * 4
  condition = 2 * 4 + 1
  assert (
    cost.memory_traffic(HloProgram(text)) == 7 * (body + condition) + 2 * 160
  )


def test_the_roofline():
  chip = CHIPS['v5e']
  sums = {'all-reduce': cost.Collective(1, 100, 4e9)}
  found = cost.roofline(chip, 197e9, 8.19e9, sums)
  assert math.isclose(found.compute, 1e-3)
  assert math.isclose(found.memory, 10e-3)
  assert math.isclose(found.links, 20e-3)
  assert (found.step, found.step_in_turn) == (found.links, pytest.approx(31e-3))


def test_chips_are_found_by_the_name_that_jax_has():
  assert chip_of('TPU v5 lite') == CHIPS['v5e']
  assert chip_of('cpu') is None
