"""What a compiled program moves, and how long a step takes at the least."""

import dataclasses
import math
import re
from collections.abc import Mapping

from abstractinator.planning.hlo import Computation, Instruction, Program
from abstractinator.training.chips import Chip

# Bytes that a chip sends for each byte of an operand, of a group of n, along a
# ring.
_SENT = {
  'all-gather': lambda n: n - 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
  'collective-broadcast': lambda n: 1,
}
# What neither reads nor writes an array.
_FREE = frozenset(
  (
    'after-all async-done async-start async-update bitcast call conditional'
    ' constant get-tuple-element opt-barrier parameter partition-id replica-id'
    ' tuple while'
  ).split()
)
_SLICES = ('dynamic-slice', 'slice', 'gather')


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of a kind in one step, of one chip.

  Attributes:
    count: How often one runs.
    operand_bytes: What goes in.
    sent_bytes: What a chip sends, along rings.
  """

  count: int
  operand_bytes: int
  sent_bytes: float


def collectives(program: Program) -> dict[str, Collective]:
  """Collectives by kind; a sum of which a chip keeps its part is one kind."""
  found: dict[str, Collective] = {}
  for computation, instruction, times in program.executed():
    for where, one in _collectives_of(program, computation, instruction):
      kind = one.opcode.removesuffix('-start')
      if instruction.name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
      size = _group_size(one.attributes, program.num_chips)
      operand_bytes = where.bytes_of(one.operands)
      sent = operand_bytes * _SENT[kind](size) if size > 1 else 0.0
      before = found.get(kind, Collective(0, 0, 0.0))
      found[kind] = Collective(
        before.count + times,
        before.operand_bytes + times * operand_bytes,
        before.sent_bytes + times * sent,
      )
  return dict(sorted(found.items()))


def _collectives_of(program, computation, instruction):
  """Of an instruction: itself, or those of a fusion."""
  if instruction.opcode.removesuffix('-start') in _SENT:
    yield computation, instruction
  elif instruction.opcode == 'fusion':
    for name in instruction.called:
      inner = program.computations[name]
      for one in inner.instructions.values():
        yield from _collectives_of(program, inner, one)


def _group_size(attributes: str, num_chips: int) -> int:
  """How many chips a collective is over, of any way to write its groups."""
  if found := re.search(
    r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes
  ):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    return math.prod(int(sizes[n]) for n in re.findall(r"'([^']+)'", found[2]))
  if found := re.search(r'replica_groups=\[\d+,(\d+)\]', attributes):
    return int(found[1])
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', attributes):
    return len(found[1].split(','))
  # None for all chips; a permutation has pairs instead.
  return num_chips


def memory_traffic(program: Program) -> int:
  """Bytes that a step reads from and writes to the memory of a chip.

  Each instruction reads its operands and writes its results once; of what it
  slices, the slices count. What stays in nearer memory does not.
  """
  return sum(
    times * _traffic(program, computation, instruction)
    for computation, instruction, times in program.executed()
    if instruction.opcode not in _FREE
    and not instruction.opcode.endswith('-done')
  )


def _traffic(
  program: Program, computation: Computation, instruction: Instruction
) -> int:
  written = sum(b.num_bytes for b in instruction.results if not b.space)
  operands = instruction.operands
  if instruction.opcode == 'fusion':
    inner = program.computations[instruction.called[0]]
    parameters = {
      int(x.arguments): x
      for x in inner.instructions.values()
      if x.opcode == 'parameter'
    }
    read = sum(
      min(
        computation.bytes_of((name,), space=0),
        _read_by_fusion(inner, parameters[number]),
      )
      for number, name in enumerate(operands)
    )
    if (update := _update_bytes(inner, inner.root)) is not None:
      written = min(written, update)
    return read + written
  if instruction.opcode in _SLICES:
    return 2 * written
  update = _update_bytes(computation, instruction)
  if update is not None:
    return 2 * update
  if instruction.opcode.endswith('-start'):
    # Its result repeats its operands.
    whole = computation.bytes_of(operands, space=0)
    return max(whole, written)
  return written + computation.bytes_of(operands, space=0)


def _read_by_fusion(inner: Computation, parameter: Instruction) -> float:
  """Bytes that a fusion reads of a parameter; all if not only slices of it."""
  read = 0
  for user in _users(inner, parameter.name):
    is_first = user.operands[0] == parameter.name
    if user.opcode == 'bitcast':
      read += _read_by_fusion(inner, user)
    elif user.opcode in _SLICES and is_first:
      read += sum(b.num_bytes for b in user.results)
    elif user.opcode != 'dynamic-update-slice' or not is_first:
      return math.inf
  return read


def _users(inner: Computation, name: str) -> list[Instruction]:
  return [x for x in inner.instructions.values() if name in x.operands]


def _update_bytes(where: Computation, instruction: Instruction) -> int | None:
  """Of an update in place, what it writes; None for anything else."""
  while instruction.opcode == 'bitcast':
    instruction = where.instructions[instruction.operands[0]]
  if instruction.opcode != 'dynamic-update-slice':
    return None
  return where.bytes_of(instruction.operands[1:2])


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step, by what limits it.

  Attributes:
    compute: Of matrix products at the peak of the chip.
    memory: To read and write its memory.
    links: To send what collectives send.
  """

  compute: float
  memory: float
  links: float

  @property
  def step(self) -> float:
    """The least it can take: all three at once."""
    return max(self.compute, self.memory, self.links)

  @property
  def step_in_turn(self) -> float:
    """What it takes if they wait for each other."""
    return self.compute + self.memory + self.links


def roofline(
  chip: Chip,
  flops: float,
  memory_bytes: float,
  found: Mapping[str, Collective],
) -> Roofline:
  """Times of a step from what a chip does in it.

  Args:
    chip: Which.
    flops: Of its matrix products.
    memory_bytes: See `memory_traffic`.
    found: See `collectives`.

  Returns:
    Times at the chip's documented peaks.
  """
  sent = sum(collective.sent_bytes for collective in found.values())
  return Roofline(
    flops / chip.flops_per_second,
    memory_bytes / chip.memory_bytes_per_second,
    sent / chip.link_bytes_per_second,
  )
