r"""Segments decoded side by side against id after id.

    python -m abstractinator.benchmarks.decode
    python -m abstractinator.benchmarks.decode --config regular_pallas_512 \
      --set model.dtype=float32

One row of codes, as many as make so many bytes, goes through the same expander
both ways: all segments at once, in as many steps as the longest segment has,
and in a loop over the ids of the row. A level of random weights, of the size of
`benchmarks.generate`, or that of a config; it ends segments where it likes, so
the bytes are those that came. The two take turns, in float32 with products in
full, else they would not decode the same.
"""

import argparse
import functools
import os
import platform
import statistics

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
from abstractinator.modules.expander_decode import decode_rows
from abstractinator.modules.expander_lanes import decode_segments


def programs(model, variables, slots, size):
  """Compiled functions of codes' vectors, by name, and those vectors."""
  config = model.config.levels[0]
  shape = (1, slots, config.d_model)
  rng = np.random.default_rng(0)
  memory_BUD = jnp.asarray(rng.normal(size=shape), jnp.float32)
  lowest_BP = jnp.zeros((1, slots), jnp.int32)
  is_valid_BP = jnp.ones((1, slots), bool)

  def side_by_side(model, memory_BUD):
    return decode_segments(
      model.levels[0].expander, memory_BUD, is_valid_BP, lowest_BP
    )

  def one_by_one(model, memory_BUD):
    return decode_rows(
      model.levels[0], memory_BUD, is_valid_BP, lowest_BP, size
    )

  compiled = {}
  for method in (side_by_side, one_by_one):
    run = jax.jit(functools.partial(model.apply, method=method))
    compiled[method.__name__] = run.lower(variables, memory_BUD).compile()
  return compiled, memory_BUD


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--bytes', type=int, default=4096, help='about so many')
  parser.add_argument('--repeats', type=int, default=5)
  add_model(parser)
  args = parser.parse_args()
  jax.config.update('jax_default_matmul_precision', 'highest')
  model = chosen_model(parser, args) or make_level('segment')
  if model.dtype != jnp.float32:
    parser.error(f'model.dtype: got {model.config.dtype!r}, allowed: float32')
  variables = make_variables(model)
  slots = probe(model, variables, args.bytes)
  compiled, memory_BUD = programs(model, variables, slots, 2 * args.bytes)
  lengths, seconds = {}, {name: [] for name in compiled}
  turns.take()
  for i in range(args.repeats + 1):
    for name, run in compiled.items():
      call = functools.partial(run, variables, memory_BUD)
      lengths[name] = np.asarray(call()[1])
      seconds[name] += timing.seconds(call, 1) if i else []
  np.testing.assert_array_equal(*lengths.values())
  count = int(lengths['one_by_one'].sum())
  longest = int(lengths['one_by_one'].max())
  median = {name: statistics.median(s) for name, s in seconds.items()}
  rows = [
    {
      'decoded': name,
      'bytes': count,
      'segments': slots,
      'steps': longest if name == 'side_by_side' else count,
      'ms': median[name] * 1e3,
      'x': median['one_by_one'] / median[name],
    }
    for name in compiled
  ]
  device = jax.devices()[0].device_kind
  print(
    f'{platform.machine()}, {os.cpu_count()} cores, {device},'
    f' jax {jax.__version__}\n'
  )
  print(table.markdown(rows))


def probe(model, variables, num_bytes):
  """How many segments make so many bytes."""
  compiled, memory_BUD = programs(model, variables, 256, 1)
  _, length_BP = compiled['side_by_side'](variables, memory_BUD)
  return max(round(num_bytes / float(np.asarray(length_BP).mean())), 1)


if __name__ == '__main__':
  main()
