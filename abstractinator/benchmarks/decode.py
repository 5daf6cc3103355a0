r"""Segments decoded side by side against id after id.

    python -m abstractinator.benchmarks.decode --workdir RUN --text FILE
    python -m abstractinator.benchmarks.decode
    python -m abstractinator.benchmarks.decode --config regular_pallas_512 \
      --set model.dtype=float32

One row of codes, of so many bytes, goes through the same expander both ways:
many segments at once, and in a loop over the ids of the row, one after the
other with a cache. The codes are those of a text, read by the first level of a
run. Without a run they are random vectors, none there twice, of random weights,
of the size of `benchmarks.generate` or of a config: these end segments where
they like, so the bytes are those that come.

What is decoded is the same. The two take turns, in float32 with products in
full, else it might not be.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks import table, timing, turns
from abstractinator.benchmarks.generate import (
  add_model,
  chosen_model,
  make_level,
  make_variables,
)
from abstractinator.decoding.lanes import codes_in_sight, decode_codes
from abstractinator.decoding.pyramid import AbstractinatorPyramid, make_model
from abstractinator.decoding.rows import decode_rows
from abstractinator.inference import TrainedPyramid
from abstractinator.runs.load import read_trained
from abstractinator.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Case:
  """What is decoded.

  Attributes:
    model: Its first level decodes.
    variables: Of the model.
    codes_BU: [1, U] int32.
    vectors: Of all codes; None for those of the level.
  """

  model: AbstractinatorPyramid
  variables: PyTree
  codes_BU: Array
  vectors: Array | None = None

  def compiled(self, *names: str) -> dict[str, Callable[[], tuple]]:
    """Of the ways, by name."""
    level = self.model.config.levels[0]
    shape = 1, self.codes_BU.shape[1] // level.pooling.num_queries
    most = shape[1] * level.segmentation.max_length
    is_valid_BP, lowest_BP = jnp.ones(shape, bool), jnp.zeros(shape, jnp.int32)

    def lookup(level, codes_BU):
      if self.vectors is None:
        return level.compressor.quantizer.lookup(codes_BU)
      return self.vectors[codes_BU]

    def side_by_side(model, codes_BU):
      level = model.levels[0]
      of_level = functools.partial(lookup, level)
      return decode_codes(
        level.expander, of_level, codes_BU, is_valid_BP, lowest_BP
      )

    def one_by_one(model, codes_BU):
      level = model.levels[0]
      vectors_BUD = lookup(level, codes_BU)
      return decode_rows(level, vectors_BUD, is_valid_BP, lowest_BP, most)

    runs = {}
    for method in (side_by_side, one_by_one):
      if method.__name__ not in names:
        continue
      run = jax.jit(functools.partial(self.model.apply, method=method))
      run = run.lower(self.variables, self.codes_BU).compile()
      runs[method.__name__] = functools.partial(
        run, self.variables, self.codes_BU
      )
    return runs


def of_run(workdir: str, text: bytes) -> Case:
  """Codes of a text as one row."""
  config, variables = read_trained(workdir)
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, sequence_length=len(text) + 1),
    model=dataclasses.replace(config.model, dtype='float32'),
  )
  codes_N = TrainedPyramid(config, variables).encode(text, level=0).codes_N
  model = make_model(config, jax.default_backend())
  return Case(model, variables, jnp.asarray(codes_N)[None])


def of_random_weights(model: AbstractinatorPyramid, num_bytes: int) -> Case:
  """As many random codes as make so many bytes."""
  variables = make_variables(model)
  level = model.config.levels[0]

  def of_segments(count):
    count *= level.pooling.num_queries
    shape = count, level.d_model
    vectors = np.random.default_rng(0).normal(size=shape)
    return Case(model, variables, jnp.arange(count)[None], jnp.float32(vectors))

  _, length_BP = of_segments(256).compiled('side_by_side')['side_by_side']()
  return of_segments(max(round(num_bytes / float(length_BP.mean())), 1))


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', help='of a run whose first level decodes')
  parser.add_argument('--text', help='file with text, from its middle on')
  parser.add_argument('--bytes', type=int, default=4096, help='about so many')
  parser.add_argument('--repeats', type=int, default=5)
  add_model(parser)
  args = parser.parse_args(argv)
  with jax.default_matmul_precision('highest'):
    rows = measure(_case(parser, args), args.repeats)
  print(
    f'{platform.machine()}, {os.cpu_count()} cores,'
    f' {jax.devices()[0].device_kind}, jax {jax.__version__}\n'
  )
  print(table.markdown(rows))


def measure(case: Case, repeats: int) -> list[dict]:
  """A line of the table for each way.

  Args:
    case: What is decoded.
    repeats: Calls that are timed, of each.

  Raises:
    AssertionError: If not the same is decoded.
  """
  runs = case.compiled('side_by_side', 'one_by_one')
  outputs, seconds = {}, {name: [] for name in runs}
  turns.take()
  for i in range(repeats + 1):
    for name, run in runs.items():
      outputs[name] = jax.device_get(run())
      seconds[name] += timing.seconds(run, 1) if i else []
  for found, want in zip(*outputs.values(), strict=True):
    np.testing.assert_array_equal(found, want)
  median = {name: statistics.median(s) for name, s in seconds.items()}
  return _rows(case, outputs['one_by_one'][1], median)


def _case(parser, args) -> Case:
  if (args.workdir is None) != (args.text is None):
    parser.error('--workdir and --text: got one of them, allowed: both')
  if args.workdir is None:
    model = chosen_model(parser, args) or make_level('segment')
    if model.dtype != jnp.float32:
      parser.error(f'model.dtype: got {model.config.dtype!r}, allowed: float32')
    return of_random_weights(model, args.bytes)
  if args.config is not None:
    parser.error('--config: got one with --workdir, which has its own')
  try:
    text = pathlib.Path(args.text).read_bytes()
    middle = len(text) // 2
    return of_run(args.workdir, text[middle : middle + args.bytes])
  except (OSError, ValueError) as error:
    parser.error(str(error))


def _rows(case, length_BP, seconds) -> list[dict]:
  level = case.model.config.levels[0]
  lowest_BP = jnp.zeros(length_BP.shape, jnp.int32)
  seen_BPK = codes_in_sight(case.codes_BU, lowest_BP, level.expander.lookback)
  _, first = np.unique(np.asarray(seen_BPK[0]), axis=0, return_index=True)
  ids = {
    'side_by_side': int(length_BP[0, first].sum()),
    'one_by_one': int(length_BP.sum()),
  }
  return [
    {
      'decoded': name,
      'd_model': level.d_model,
      'bytes': ids['one_by_one'],
      'segments': length_BP.size if name == 'one_by_one' else len(first),
      'ids': ids[name],
      'steps': _steps(case) if name == 'side_by_side' else ids[name],
      'ms': 1e3 * seconds[name],
      'x': seconds['one_by_one'] / seconds[name],
    }
    for name in seconds
  ]


def _steps(case: Case) -> int:
  """How often the expander is called to decode side by side."""
  count = 0

  def counted(call, args, kwargs, context):
    if context.method_name == 'greedy':
      jax.debug.callback(count_one)
    return call(*args, **kwargs)

  def count_one():
    nonlocal count
    count += 1

  with nn.intercept_methods(counted):
    run = case.compiled('side_by_side')['side_by_side']
  jax.block_until_ready(run())
  jax.effects_barrier()
  return count


if __name__ == '__main__':
  main()
