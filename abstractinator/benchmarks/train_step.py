"""Speed and memory of a training step against the length of its rows.

    python -m abstractinator.benchmarks.train_step

The number of bytes in a batch is the same for all lengths, so that a cost
linear in the length shows as equal times and equal memory. The lengths take
turns, one step each, and so does a matrix product, the measure of the machine:
what else runs on it then slows all of them alike.
"""

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from abstractinator.benchmarks import profile, timing
from abstractinator.benchmarks.baseline import LEVEL, Step
from abstractinator.runs import huge_pages

_WARMUP_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A step at one length; the JSON line of `--json`.

  Attributes:
    sequence_length: S.
    batch_size: B.
    compile_seconds: Of the step, tracing included.
    median_seconds: Of a step.
    best_seconds: Of a step.
    bytes_per_second: B * S over the median.
    best_bytes_per_second: B * S over the best.
    flops: Matrix products of the model in a step.
    flops_per_second: Over the median.
    matmul_share: `flops_per_second` over the median rate of the machine's own
      matrix product.
    best_matmul_share: The same of the best step and the best product.
    memory_bytes: What the compiled step takes: arguments and temporaries.
    peak_rss_bytes: Of the whole process so far, all lengths together.
    matmul_flops_per_second: Median rate of the machine's own matrix product.
    best_matmul_flops_per_second: Its best rate.
    dtype: Compute type.
    device: What it ran on.
    jax: Version.
  """

  sequence_length: int
  batch_size: int
  compile_seconds: float
  median_seconds: float
  best_seconds: float
  bytes_per_second: float
  best_bytes_per_second: float
  flops: int
  flops_per_second: float
  matmul_share: float
  best_matmul_share: float
  memory_bytes: int
  peak_rss_bytes: int
  matmul_flops_per_second: float
  best_matmul_flops_per_second: float
  dtype: str
  device: str
  jax: str


def measure(
  steps: Sequence[Step], num_steps: int, dtype: str
) -> list[Measurement]:
  """Times compiled steps and a matrix product, taking turns.

  Args:
    steps: One a length.
    num_steps: How many of each to time.
    dtype: Compute type.

  Returns:
    A measurement of each.
  """
  for step in steps:
    timing.seconds(step, _WARMUP_STEPS)
  durations = [[] for _ in steps]
  rates = [timing.matmul_rate(jnp.dtype(dtype))]
  for _ in range(num_steps):
    for step, taken in zip(steps, durations, strict=True):
      taken += timing.seconds(step, 1)
    rates.append(timing.matmul_rate(jnp.dtype(dtype)))
  return [
    _summarize(step, taken, rates, dtype)
    for step, taken in zip(steps, durations, strict=True)
  ]


def _summarize(
  step: Step, durations: list[float], rates: list[float], dtype: str
) -> Measurement:
  batch_size, sequence_length = step.shape
  num_bytes = batch_size * sequence_length
  median, best = statistics.median(durations), min(durations)
  rate, best_rate = statistics.median(rates), max(rates)
  return Measurement(
    sequence_length=sequence_length,
    batch_size=batch_size,
    compile_seconds=step.compile_seconds,
    median_seconds=median,
    best_seconds=best,
    bytes_per_second=num_bytes / median,
    best_bytes_per_second=num_bytes / best,
    flops=step.flops,
    flops_per_second=step.flops / median,
    matmul_share=step.flops / median / rate,
    best_matmul_share=step.flops / best / best_rate,
    memory_bytes=step.memory_bytes(),
    peak_rss_bytes=_peak_rss_bytes(),
    matmul_flops_per_second=rate,
    best_matmul_flops_per_second=best_rate,
    dtype=dtype,
    device=jax.devices()[0].device_kind,
    jax=jax.__version__,
  )


def _peak_rss_bytes() -> int:
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if platform.system() == 'Darwin' else peak * 1024


def table(measurements: Sequence[Measurement]) -> str:
  """What to print; ratios are to the first length."""
  first = measurements[0]
  base = f'/S={first.sequence_length}'
  lines = [
    f'{"S":>6} {"B":>4} {"compile s":>9} {"step ms":>13} {"bytes/s":>15}'
    f' {base:>8} {"GFLOP/s":>8} {"of matmul":>13} {"MiB":>7} {base:>8}'
  ]
  for m in measurements:
    speed = m.bytes_per_second / first.bytes_per_second
    memory = m.memory_bytes / first.memory_bytes
    lines.append(
      f'{m.sequence_length:>6} {m.batch_size:>4} {m.compile_seconds:>9.1f}'
      f' {m.median_seconds * 1e3:>6.0f} {m.best_seconds * 1e3:>6.0f}'
      f' {m.bytes_per_second:>7.0f} {m.best_bytes_per_second:>7.0f}'
      f' {speed:>8.2f} {m.flops_per_second / 1e9:>8.1f}'
      f' {m.matmul_share:>6.1%} {m.best_matmul_share:>6.1%}'
      f' {m.memory_bytes / 2**20:>7.0f} {memory:>8.2f}'
    )
  last = measurements[-1]
  lines.append(
    f'median and best of each; {last.dtype} matrix product'
    f' {last.matmul_flops_per_second / 1e9:.0f} and'
    f' {last.best_matmul_flops_per_second / 1e9:.0f} GFLOP/s on {last.device};'
    f' peak memory of the process {last.peak_rss_bytes / 2**20:.0f} MiB'
  )
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints the table, and writes what was asked for."""
  parser = argparse.ArgumentParser(
    prog='python -m abstractinator.benchmarks.train_step',
    description='Speed and memory of a training step.',
  )
  parser.add_argument('--sequence_lengths', default='512,1024,2048,4096')
  parser.add_argument('--tokens', type=int, default=4096, help='of a batch')
  parser.add_argument('--steps', type=int, default=8, help='timed, a length')
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument('--json', metavar='FILE', help='append JSON lines to it')
  parser.add_argument(
    '--profile', action='store_true', help='say where the time goes'
  )
  args = parser.parse_args(argv)
  steps = []
  for length in _lengths(parser, args.sequence_lengths, args.tokens):
    print(f'compiling S={length}', file=sys.stderr)
    steps.append(Step(LEVEL, length, args.tokens // length, args.dtype))
  measurements = measure(steps, args.steps, args.dtype)
  print(table(measurements))
  if args.json:
    with open(args.json, 'a') as file:
      for measurement in measurements:
        file.write(json.dumps(dataclasses.asdict(measurement)) + '\n')
  if args.profile:
    for step in steps:
      print(f'\nS={step.shape[1]}\n{profile.report(step, step.compiled)}')


def _lengths(
  parser: argparse.ArgumentParser, given: str, tokens: int
) -> list[int]:
  lengths = []
  for length in given.split(','):
    if not length.isdecimal() or not int(length) or tokens % int(length):
      parser.error(
        f'--sequence_lengths: got {length!r}, allowed: divisors of --tokens'
        f' ({tokens})'
      )
    lengths.append(int(length))
  return lengths


if __name__ == '__main__':
  huge_pages.ensure()
  main()
