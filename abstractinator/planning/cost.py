"""Data that a compiled program moves, and a lower bound on its step time."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from abstractinator.planning.hlo import Computation, HloProgram, Instruction
from abstractinator.runs.chips import Chip

# Bytes that a chip of a group of n sends along a ring for each byte of an
# operand.
_SENT = {
  'all-gather': lambda n: n - 1,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'ragged-all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
  'collective-broadcast': lambda n: 1,
}
# Opcodes that neither read nor write an array.
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
  """All collectives of one kind in a step, for one chip.

  Attributes:
    count: Number of times that a collective runs.
    operand_bytes: Bytes of all operands.
    sent_bytes: Bytes that a chip sends, along rings.
  """

  count: int
  operand_bytes: int
  sent_bytes: float


def collectives(program: HloProgram) -> dict[str, Collective]:
  """Returns the collectives of a program by kind.

  An all-reduce of which each chip keeps a part counts as a reduce-scatter.
  """
  found: dict[str, Collective] = {}
  for computation, instruction, times in program.executed:
    for where, one in _collectives_of(program, computation, instruction):
      kind = one.opcode.removesuffix('-start')
      if instruction.name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
      size = _group_size(one.attributes, program.num_chips)
      operand_bytes = sum(where[name].num_bytes for name in one.operands)
      sent = operand_bytes * _SENT[kind](size) if size > 1 else 0.0
      before = found.get(kind, Collective(0, 0, 0.0))
      found[kind] = Collective(
        before.count + times,
        before.operand_bytes + times * operand_bytes,
        before.sent_bytes + times * sent,
      )
  return dict(sorted(found.items()))


def _collectives_of(
  program: HloProgram, computation: Computation, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
  """Yields an instruction if it is a collective, or those of a fusion."""
  if instruction.opcode.removesuffix('-start') in _SENT:
    yield computation, instruction
  elif instruction.opcode == 'fusion':
    for name in instruction.called:
      inner = program.computations[name]
      for one in inner.values():
        yield from _collectives_of(program, inner, one)


def _group_size(attributes: str, num_chips: int) -> int:
  """Returns the number of chips of a collective, in any notation of groups."""
  if found := re.search(
    r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', attributes
  ):
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    return math.prod(int(sizes[n]) for n in re.findall(r"'([^']+)'", found[2]))
  if found := re.search(r'replica_groups=\[\d+,(\d+)\]', attributes):
    return int(found[1])
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', attributes):
    return len(found[1].split(','))
  # No groups mean all chips; a permutation has pairs instead of groups.
  return num_chips


def memory_traffic(program: HloProgram) -> int:
  """Returns the bytes that a step reads from and writes to a chip's memory.

  Each instruction reads its operands and writes its results once; if it reads
  or writes slices, only the slices count. Data in nearer memories is free.
  """
  return sum(
    times * _traffic(program, computation, instruction)
    for computation, instruction, times in program.executed
    if instruction.opcode not in _FREE
    and not instruction.opcode.endswith('-done')
  )


def _traffic(
  program: HloProgram, computation: Computation, instruction: Instruction
) -> int:
  written = instruction.hbm_bytes
  if instruction.opcode == 'fusion':
    inner = program.computations[instruction.called[0]]
    update = _update_bytes(inner, inner.root)
    read = _read_by_fusion(computation, instruction, inner)
    return read + (written if update is None else min(written, update))
  if instruction.opcode in _SLICES:
    return 2 * written
  update = _update_bytes(computation, instruction)
  if update is not None:
    return 2 * update
  read = sum(computation[name].hbm_bytes for name in instruction.operands)
  # The result of a start repeats its operands.
  is_start = instruction.opcode.endswith('-start')
  return max(read, written) if is_start else read + written


def _read_by_fusion(
  computation: Computation, fusion: Instruction, inner: Computation
) -> int:
  """Returns the bytes that a fusion reads of its operands."""
  parameters = {
    int(x.arguments): x for x in inner.values() if x.opcode == 'parameter'
  }
  read = 0
  for number, name in enumerate(fusion.operands):
    whole = computation[name].hbm_bytes
    slices = _sliced_bytes(inner, parameters[number])
    read += whole if slices is None else min(whole, slices)
  return read


def _sliced_bytes(inner: Computation, parameter: Instruction) -> int | None:
  """Returns the bytes of a parameter's slices, None if all of it is read."""
  read = 0
  for user in inner.values():
    if parameter.name not in user.operands:
      continue
    is_first = user.operands[0] == parameter.name
    if user.opcode == 'bitcast':
      slices = _sliced_bytes(inner, user)
      if slices is None:
        return None
      read += slices
    elif user.opcode in _SLICES and is_first:
      read += user.num_bytes
    elif user.opcode != 'dynamic-update-slice' or not is_first:
      return None
  return read


def _update_bytes(where: Computation, instruction: Instruction) -> int | None:
  """Returns the bytes that an update in place writes; None for others."""
  while instruction.opcode == 'bitcast':
    instruction = where[instruction.operands[0]]
  if instruction.opcode != 'dynamic-update-slice':
    return None
  return where[instruction.operands[1]].num_bytes


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step at a chip's documented peaks, by what limits it.

  Attributes:
    compute: Time of the matrix products.
    memory: Time to read and write the memory of a chip.
    links: Time to send the data of collectives.
    step: Lower bound on the step: all three overlap.
    step_in_turn: Time of the step if the three wait for each other.
  """

  compute: float
  memory: float
  links: float
  step: float
  step_in_turn: float


def roofline(
  chip: Chip, flops: float, memory_bytes: float, found: Mapping[str, Collective]
) -> Roofline:
  """Computes the time of a step on one chip.

  Args:
    chip: Chip that runs the step.
    flops: Floating point operations of its matrix products.
    memory_bytes: Bytes read and written, from `memory_traffic`.
    found: Collectives by kind, from `collectives`.
  """
  sent = sum(collective.sent_bytes for collective in found.values())
  times = (
    flops / chip.flops_per_second,
    memory_bytes / chip.memory_bytes_per_second,
    sent / chip.link_bytes_per_second,
  )
  return Roofline(*times, step=max(times), step_in_turn=sum(times))
