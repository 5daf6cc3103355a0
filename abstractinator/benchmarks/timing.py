"""Timing of calls, the machine's own speed, and tables, for all benchmarks.

What is compared takes turns, one call each, and so do a matrix product and a
copy of memory, which measure the machine: other work on the machine then slows
all of them alike, and ratios within one run remain meaningful.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Width of a square matrix that reaches the full speed of a machine, and bytes
# of an array that no cache holds.
_WIDTH = {'cpu': 1536, 'gpu': 8192, 'tpu': 8192}
_COPIED_BYTES = {'cpu': 1 << 28, 'gpu': 1 << 30, 'tpu': 1 << 30}


def seconds(function: Callable[[], Any], queued: int = 1) -> float:
  """Measures how long a call takes until its result is there.

  Args:
    function: A compiled function without arguments.
    queued: Number of calls that are launched, in order, before one waits.

  Returns:
    Seconds of a call, the mean of those queued.
  """
  start = time.perf_counter()
  for _ in range(queued):
    result = function()
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / queued


class Timings(NamedTuple):
  """Medians of calls that took turns, and of the machine meanwhile.

  Attributes:
    seconds: Duration of each call, by name.
    flops_per_second: Rate of the machine's own matrix product.
    bytes_per_second: Rate of the machine's copy, read and written.
  """

  seconds: dict[Any, float]
  flops_per_second: float
  bytes_per_second: float


def take_turns(
  calls: Mapping[Any, Callable[[], Any]],
  repeats: int,
  *,
  dtype: str = 'float32',
  queued: int = 1,
  warmup: int = 1,
) -> Timings:
  """Times calls in turns, one each, and the machine in each turn.

  Args:
    calls: Compiled functions without arguments, by name.
    repeats: Number of turns that are timed.
    dtype: Type of the matrices of the machine's product.
    queued: Number of calls that are launched before one waits.
    warmup: Number of turns before the first that is timed.
  """
  backend = jax.default_backend()
  width = _WIDTH[backend]
  x = jax.random.normal(jax.random.key(0), (width, width), dtype)
  y = jnp.zeros(_COPIED_BYTES[backend] // 4, jnp.int32)
  product = jax.jit(jnp.matmul).lower(x, x).compile()
  # A copy that XLA does not leave out.
  copy = jax.jit(jnp.bitwise_not).lower(y).compile()
  probes = lambda: product(x, x), lambda: copy(y)
  by_name = dict(calls) | dict(zip(('product', 'copy'), probes, strict=True))
  taken: dict[Any, list[float]] = {name: [] for name in by_name}
  for turn in range(-warmup, repeats):
    for name, call in by_name.items():
      duration = seconds(call, queued)
      taken[name] += [duration] if turn >= 0 else []
  medians = {name: statistics.median(x) for name, x in taken.items()}
  flops, num_bytes = 2 * width**3, 2 * y.nbytes
  product_seconds, copy_seconds = medians.pop('product'), medians.pop('copy')
  return Timings(medians, flops / product_seconds, num_bytes / copy_seconds)


def positive(text: str) -> int:
  """Parses an integer of at least 1, as a `type` of argparse."""
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'got {text!r}, allowed: >= 1')
  return int(text)


def make_parser(name: str, about: str | None) -> argparse.ArgumentParser:
  """Returns the parser of the module `name`, whose docstring is its help."""
  parser = argparse.ArgumentParser(
    prog=f'python -m abstractinator.benchmarks.{name}',
    description=about,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--json', metavar='FILE', help='append JSON lines to FILE'
  )
  return parser


class Report:
  """Output of a benchmark: tables on stdout, rows as JSON lines in a file."""

  def __init__(self, prog: str, argv: Sequence[str], json_path: str | None):
    """Prints the command and its device; rows go to `json_path` if given."""
    # The command that a row names does not depend on where the row goes.
    json_only = argparse.ArgumentParser(add_help=False)
    json_only.add_argument('--json')
    given = shlex.join(json_only.parse_known_args(argv)[1])
    device, cores = jax.devices()[0], f'{os.cpu_count()} cores'
    is_cpu = device.platform == 'cpu'
    self._json_path = json_path
    self._about = dict(
      command=f'{prog} {given}'.strip(),
      device=f'{cores}, {platform.machine()}' if is_cpu else device.device_kind,
      jax=jax.__version__,
    )
    print('{device}, jax {jax}: {command}'.format(**self._about))

  def add(
    self, rows: Sequence[Mapping[str, object]], decimals: int | None = None
  ) -> None:
    """Prints a table, and appends its rows to the file if there is one.

    Args:
      rows: Cells by column.
      decimals: Argument of `markdown`; the file has all digits.
    """
    print(f'\n{markdown(rows, decimals)}', flush=True)
    if self._json_path is not None:
      with open(self._json_path, 'a') as file:
        for row in rows:
          file.write(json.dumps(self._about | dict(row)) + '\n')


def markdown(
  rows: Sequence[Mapping[str, object]], decimals: int | None = None
) -> str:
  """Lays rows out under the keys of all of them, in order of appearance.

  Args:
    rows: Cells by column. What a row lacks, or is None, stays empty.
    decimals: Digits of floats after the point; None for three digits in all.

  Returns:
    A Markdown table whose columns line up, without a newline at the end.
  """
  columns = []
  for name in dict.fromkeys(name for row in rows for name in row):
    values = [row.get(name) for row in rows]
    cells = [name, *(_cell(value, decimals) for value in values)]
    width = max(2, *map(len, cells))
    is_number = all(isinstance(value, int | float | None) for value in values)
    rule = '-' * (width - 1) + (':' if is_number else '-')
    cells = [x.rjust(width) if is_number else x.ljust(width) for x in cells]
    columns.append([cells[0], rule, *cells[1:]])
  lines = zip(*columns, strict=True)
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cell(value: object, decimals: int | None) -> str:
  if value is None:
    return ''
  if isinstance(value, float) and decimals is not None:
    return f'{value:.{decimals}f}'
  if isinstance(value, float):
    text = f'{value:.3g}'
    return f'{value:.0f}' if 'e+' in text else text
  return str(value)
