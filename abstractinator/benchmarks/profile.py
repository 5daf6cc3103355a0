"""Where the time of a compiled training step goes, by module."""

import collections
import glob
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax

_STEPS = 3
# What takes less is left out of the table.
_LEAST_SHARE = 0.005
# Names of a compiled instruction and of the operation it stems from.
_NAMED = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*?op_name="([^"]*)"', re.M)
# Their time is that of the instructions in them.
_CONTAINERS = ('while', 'call', 'conditional')


def report(function: Callable[[], Any], compiled: jax.stages.Compiled) -> str:
  """Traces some calls and adds up the time of their instructions.

  Instructions that XLA fused count for the operation that names the fusion, and
  those that run side by side count each, so the shares are a guide.

  Args:
    function: Runs `compiled` once; called a few times.
    compiled: The step.

  Returns:
    A table: milliseconds a call, share, and module, forward (->), backward
    (<-) or outside of both (--).
  """
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      for _ in range(_STEPS):
        jax.block_until_ready(function())
    (path,) = glob.glob(
      os.path.join(directory, '**', '*.xplane.pb'), recursive=True
    )
    trace = jax.profiler.ProfileData.from_file(path)
    origin = dict(_NAMED.findall(compiled.as_text()))
    taken = collections.Counter()
    for name, nanoseconds in _instructions(trace):
      taken[module_of(origin.get(name, ''))] += nanoseconds
  total = taken.total()
  return '\n'.join(
    f'{nanoseconds / _STEPS / 1e6:9.1f} ms {nanoseconds / total:6.1%}  {module}'
    for module, nanoseconds in taken.most_common()
    if nanoseconds >= _LEAST_SHARE * total
  )


def module_of(op_name: str) -> str:
  """Module and direction of an operation.

  Args:
    op_name: As XLA keeps it, such as
      'jit(train_step)/transpose(jvp(AbstractinatorPyramid))/level_0/expander/
      block_2/ffn/mul', in one piece.

  Returns:
    Such as '<- expander/block/ffn': levels and layers of a stack together,
    parts of a block apart.
  """
  if 'jvp(AbstractinatorPyramid)' not in op_name:
    # Losses have no module; what has no derivative is optimizer or statistics.
    if 'jvp(' in op_name:
      return '<- losses' if 'transpose(' in op_name else '-> losses'
    return '-- update' if op_name else '-- unnamed'
  direction = '<-' if 'transpose(' in op_name else '->'
  # What is computed again backward names its forward path a second time.
  path = re.split(r'jvp\(AbstractinatorPyramid\)\)?/', op_name)[1].split('/')
  parts = [re.sub(r'_\d+$', '', part) for part in path[:-1]]
  parts = [
    part for part in parts if re.fullmatch('[a-z_]+', part) and part != 'level'
  ]
  depth = parts.index('block') + 2 if 'block' in parts else 3
  return f'{direction} {"/".join(parts[:depth])}'


def _instructions(
  trace: jax.profiler.ProfileData,
) -> Iterator[tuple[str, float]]:
  """Name and nanoseconds of every compiled instruction that ran."""
  for plane in trace.planes:
    for line in plane.lines:
      for event in line.events:
        name = dict(event.stats).get('hlo_op')
        if name and not name.startswith(_CONTAINERS):
          yield name, event.duration_ns
