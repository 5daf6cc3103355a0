"""Compiled programs as text: their instructions and how often each one runs.

XLA's own `cost_analysis` counts the body of a loop once, whatever its length,
and its Python bindings do not list instructions; therefore the text is parsed.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Type, bits of an element, sizes of the axes, layout.
_ARRAY = re.compile(r'([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?')
_OTHER_MEMORY = re.compile(r'S\([1-9]')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_LINE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)='
  r'%?([\w.\-]+)|\bbranch_computations=\{([^}]*)\}'
)
# Instructions that call a computation for each element; the work of the
# computation is part of the instruction.
_ELEMENTWISE = ('all-reduce', 'reduce', 'reduce-scatter', 'scatter', 'sort')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a program.

  Attributes:
    name: Name of the result.
    opcode: Operation, such as 'fusion' or 'all-reduce'.
    num_bytes: Size of the arrays that it makes, without padding.
    hbm_bytes: Part of `num_bytes` in the high-bandwidth memory of the chip; the
      rest is in nearer memories.
    operands: Names of the instructions whose results it reads.
    arguments: Text between its parentheses.
    attributes: Text after its parentheses.
    is_root: True if its computation returns the result.
  """

  name: str
  opcode: str
  num_bytes: int
  hbm_bytes: int
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Names of the computations it runs, except those for each element."""
    if self.opcode.removesuffix('-start') in _ELEMENTWISE:
      return ()
    names = []
    for one, several in _CALLED.findall(self.attributes):
      names += [one] if one else re.findall(r'[\w.\-]+', several)
    return tuple(names)


class Computation(dict[str, Instruction]):
  """A function of a program: its instructions by name."""

  @property
  def root(self) -> Instruction:
    """Instruction whose result the computation returns."""
    return next(x for x in self.values() if x.is_root)


class HloProgram:
  """All computations of a compiled program.

  Attributes:
    computations: Computations by name.
    entry: Name of the computation that runs first.
    num_chips: Number of chips that run the program together.
    executed: Instructions that run, each with its computation and how often it
      runs. Computations that an instruction calls are entered, those of loops
      as often as they run; a fusion is one instruction. A loop of unknown
      length counts once.
    unbounded_loops: Number of loops of unknown length.
  """

  def __init__(self, text: str):
    """Parses the text of `jax.stages.Compiled.as_text`.

    Raises:
      ValueError: If it has no entry.
    """
    self.computations: dict[str, Computation] = {}
    self.entry = ''
    count = re.search(r'\bnum_partitions=(\d+)', text)
    self.num_chips = int(count[1]) if count else 1
    current = Computation()
    for line in text.splitlines():
      if head := _HEAD.match(line):
        current = self.computations[head[2]] = Computation()
        self.entry = head[2] if head[1] else self.entry
      elif found := _LINE.match(line):
        instruction = _instruction(found[2], found[3], bool(found[1]))
        current[instruction.name] = instruction
    if not self.entry:
      raise ValueError(
        'program: has no ENTRY, allowed: the text of an HLO module'
      )
    self.unbounded_loops = 0
    self.executed = tuple(self._executed(self.entry, 1))

  def _executed(
    self, name: str, times: int
  ) -> Iterator[tuple[Computation, Instruction, int]]:
    computation = self.computations[name]
    for instruction in computation.values():
      yield computation, instruction, times
      if instruction.opcode == 'fusion':
        continue
      runs = times
      if instruction.opcode == 'while':
        count = self._trip_count(instruction)
        self.unbounded_loops += count is None
        runs *= count or 1
      for called in instruction.called:
        yield from self._executed(called, runs)

  def _trip_count(self, loop: Instruction) -> int | None:
    """Returns how often the body of a `while` runs, None if it is unknown."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    (name,) = re.findall(r'condition=%?([\w.\-]+)', loop.attributes)
    computation = self.computations[name]
    root = compared = computation.root
    if root.opcode == 'fusion' and root.called:
      compared = self.computations[root.called[0]].root
    is_less = 'direction=LT' in compared.attributes
    # Loops of scans count from 0.
    bounds = [
      computation[operand].arguments
      for operand in root.operands
      if computation[operand].opcode == 'constant'
    ]
    return int(bounds[0]) if is_less and len(bounds) == 1 else None


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
  text = re.sub(r'/\*.*?\*/', '', text)
  # The type of the result is a tuple in parentheses, or has no spaces.
  end = _closing(text) if text[:1] == '(' else len(text.split(' ')[0])
  opcode, _, rest = text[end:].lstrip().partition('(')
  stop = _closing(f'({rest}') - 1
  arguments = rest[: stop - 1]
  num_bytes, hbm_bytes = _sizes(text[:end])
  return Instruction(
    name,
    opcode.strip(),
    num_bytes,
    hbm_bytes,
    tuple(re.findall(r'%([\w.\-]+)', arguments)),
    arguments,
    rest[stop:],
    is_root,
  )


def _closing(text: str) -> int:
  """Returns the position after the bracket that closes the first character."""
  depth = 0
  for match in re.finditer(r'[()\[\]{}]', text):
    depth += 1 if match[0] in '([{' else -1
    if not depth:
      return match.end()
  return len(text)


def _sizes(arrays: str) -> tuple[int, int]:
  """Returns the bytes of arrays, and how many are in high-bandwidth memory."""
  num_bytes = hbm_bytes = 0
  for dtype, digits, sizes, layout in _ARRAY.findall(arrays):
    # Tokens, opaque values and the like have no digits and take no memory.
    bits = 8 if dtype == 'pred' else int(digits or 0)
    size = -(-math.prod(int(n) for n in sizes.split(',') if n) * bits // 8)
    num_bytes += size
    # S(n) is a nearer memory; number 0, which is not written, is the HBM.
    if not _OTHER_MEMORY.search(layout):
      hbm_bytes += size
  return num_bytes, hbm_bytes
