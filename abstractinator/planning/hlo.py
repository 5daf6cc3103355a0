"""Compiled programs, read: their instructions and how often each runs."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
  'pred': 8,
  **{f'{sign}{bits}': bits for sign in 'su' for bits in (4, 8, 16, 32, 64)},
  **{f'f{bits}': bits for bits in (16, 32, 64)},
  'bf16': 16,
  'c64': 64,
  'c128': 128,
}
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_SPACE = re.compile(r'S\((\d+)\)')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)='
  r'%?([\w.\-]+)|\bbranch_computations=\{([^}]*)\}'
)
# Called an element at a time; what they do is part of the caller.
_ELEMENTWISE = ('all-reduce', 'reduce', 'reduce-scatter', 'scatter', 'sort')
_OPENING, _CLOSING = '([{', ')]}'


@dataclasses.dataclass(frozen=True)
class Buffer:
  """An array of a program.

  Attributes:
    num_bytes: Without padding.
    space: Which memory it lies in; 0 is the large one.
  """

  num_bytes: int
  space: int


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a program.

  Attributes:
    name: Of its result.
    opcode: What it does.
    results: Arrays it makes.
    operands: Names of what it reads.
    arguments: What stands between its parentheses.
    attributes: What follows them.
    is_root: Whether it is what its computation returns.
  """

  name: str
  opcode: str
  results: tuple[Buffer, ...]
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Computations it runs, those that run an element at a time left out."""
    if self.opcode.removesuffix('-start') in _ELEMENTWISE:
      return ()
    names = []
    for one, several in _CALLED.findall(self.attributes):
      names += [one] if one else re.findall(r'[\w.\-]+', several)
    return tuple(names)

  def attribute(self, pattern: str) -> str | None:
    """What a pattern's group finds in the attributes."""
    found = re.search(pattern, self.attributes)
    return found and found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
  """A function of a program, its instructions by name."""

  instructions: dict[str, Instruction]

  @property
  def root(self) -> Instruction:
    """What it returns."""
    return next(x for x in self.instructions.values() if x.is_root)

  def bytes_of(self, names: tuple[str, ...], space: int | None = None) -> int:
    """Bytes of the results of instructions, of one memory or of all."""
    return sum(
      buffer.num_bytes
      for name in names
      for buffer in self.instructions[name].results
      if space is None or buffer.space == space
    )


class Program:
  """All computations of a compiled program.

  Attributes:
    computations: By name.
    entry: Name of the first.
    num_chips: That run it together.
  """

  def __init__(self, text: str):
    """Reads what `Compiled.as_text` wrote.

    Raises:
      ValueError: If it has no entry.
    """
    self.computations: dict[str, Computation] = {}
    self.entry = ''
    count = re.search(r'\bnum_partitions=(\d+)', text)
    self.num_chips = int(count[1]) if count else 1
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
      if head := _HEAD.match(line):
        current = {}
        self.computations[head[2]] = Computation(current)
        self.entry = head[2] if head[1] else self.entry
      elif found := _LINE.match(line):
        instruction = _instruction(found[2], found[3], bool(found[1]))
        current[instruction.name] = instruction
    if not self.entry:
      raise ValueError(
        'program: has no ENTRY, allowed: the text of an HLO module'
      )

  def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
    """Yields what runs, with how often: fusions as one, bodies of loops apart.

    Computations that an instruction calls are entered, except those of fusions.
    A loop of which nothing says how often it runs counts once, see `unbounded`.
    """
    yield from self._executed(self.entry, 1)

  def _executed(self, name, times):
    computation = self.computations[name]
    for instruction in computation.instructions.values():
      yield computation, instruction, times
      if instruction.opcode == 'fusion':
        continue
      runs = times
      if instruction.opcode == 'while':
        runs *= self.trip_count(instruction) or 1
      for called in instruction.called:
        yield from self._executed(called, runs)

  def unbounded(self) -> int:
    """How many loops there are of unknown length."""
    return sum(
      instruction.opcode == 'while' and self.trip_count(instruction) is None
      for _, instruction, _ in self.executed()
    )

  def trip_count(self, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; None if that is not written."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
      return int(known)
    condition = loop.attribute(r'condition=%?([\w.\-]+)')
    computation = self.computations[condition]
    root = computation.root
    is_less = root.opcode == 'compare' and 'direction=LT' in root.attributes
    if root.opcode == 'fusion' and root.called:
      inner = self.computations[root.called[0]].root
      is_less = inner.opcode == 'compare' and 'direction=LT' in inner.attributes
    # Loops of scans count from 0.
    bounds = [
      computation.instructions[name].arguments
      for name in root.operands
      if computation.instructions[name].opcode == 'constant'
    ]
    return int(bounds[0]) if is_less and len(bounds) == 1 else None


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
  text = re.sub(r'/\*.*?\*/', '', text)
  end = _end_of_type(text)
  opcode, _, rest = text[end:].lstrip().partition('(')
  stop = _closing(f'({rest}') - 1
  arguments = rest[: stop - 1]
  return Instruction(
    name,
    opcode.strip(),
    tuple(_buffers(text[:end])),
    tuple(re.findall(r'%([\w.\-]+)', arguments)),
    arguments,
    rest[stop:],
    is_root,
  )


def _end_of_type(text: str) -> int:
  if text.startswith('('):
    return _closing(text)
  end = text.find(' ')
  return end if end >= 0 else len(text)


def _closing(text: str) -> int:
  """Where what the first character opens is closed, one after it."""
  depth = 0
  for match in re.finditer(r'[()\[\]{}]', text):
    depth += 1 if match[0] in _OPENING else -1
    if not depth:
      return match.end()
  return len(text)


def _buffers(text: str) -> Iterator[Buffer]:
  for dtype, sizes, layout in _ARRAY.findall(text):
    space = _SPACE.search(layout)
    # Tokens, opaque values and the like take no room.
    bits = 8 if dtype.startswith('f8') else _BITS.get(dtype, 0)
    count = math.prod(int(size) for size in sizes.split(',') if size)
    yield Buffer(-(-count * bits // 8), int(space[1]) if space else 0)
