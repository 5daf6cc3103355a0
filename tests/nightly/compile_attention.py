"""Compiles attention, or a training step, for chips that are not at hand.

    python tests/nightly/compile_attention.py v5e-4 kernels
    python tests/nightly/compile_attention.py h100x1 kernels mosaic_gpu

Prints a line of JSON for each program. `kernels` compiles many shapes, of the
types that the implementation takes, `long` compiles the one whose cycles are
counted, and the name of a config compiles its training step.
"""

import functools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.nightly.one_chip import OneChip  # noqa: I001

import jax

from abstractinator.cli import config_file
from abstractinator.ops.attention import attention
from abstractinator.ops.attention.api import IMPLEMENTATIONS
from abstractinator.training.program import make_program
from abstractinator.types import Batch

# Rows, ids, heads of queries, keys and values, widths of keys and values,
# window, type.
KERNELS = (
  (2, 1024, (8, 8, 8), (64, 64), 127, 'bfloat16'),
  (2, 1000, (8, 8, 8), (32, 32), 64, 'float32'),
  (2, 1024, (4, 4, 4), (96, 96), 200, 'bfloat16'),
  (2, 1024, (4, 4, 4), (128, 128), 511, 'float32'),
  (2, 2048, (8, 8, 8), (64, 64), None, 'bfloat16'),
  (2, 2048, (8, 8, 1), (16, 64), 64, 'bfloat16'),
  (2, 2048, (8, 8, 1), (80, 64), None, 'bfloat16'),
  (1, 300, (3, 3, 3), (40, 24), 0, 'bfloat16'),
)
LONG = (8, 8192, (8, 8, 8), (64, 64), 127, 'bfloat16')


def program(shape, chip):
  """Returns attention with its gradients as a function, and its arguments."""
  rows, size, heads, widths, window, dtype = shape
  args = [
    chip.array((rows, size, count, width), dtype)
    for count, width in zip(heads, (widths[0], *widths), strict=True)
  ]

  def both(q, k, v, group):
    run = functools.partial(
      attention,
      group_BS=group,
      window=window,
      scale=0.125,
      implementation=chip.implementation,
    )
    out, pullback = jax.vjp(run, q, k, v)
    return out, *pullback(out)

  return both, (*args, chip.array((rows, size), 'int32'))


def step(name, chip):
  """Returns the training step of a config, and its arguments."""
  # One compiled layer for all of a stack; without it this takes many minutes.
  config = config_file.load(name, ['model.implementation.scan_layers=True'])
  run = make_program(config, chip.platform, total_steps=10_000)
  state = jax.eval_shape(run.init, jax.random.key(0))
  state = jax.tree.map(lambda x: chip.array(x.shape, x.dtype), state)
  # One row in place of the config's batch: the number changes nothing else.
  ids_BS = chip.array((1, config.data.sequence_length), 'int32')
  return run.step, (state, Batch(ids_BS, ids_BS, chip.array((1,), 'int32')))


def main(topology, what, implementation=None):
  chip = OneChip(topology, implementation)
  about = {'topology': topology}
  if what not in ('kernels', 'long'):
    found = chip.compile(*step(what, chip))
    print(json.dumps(about | {'program': what} | found), flush=True)
    return
  dtypes = IMPLEMENTATIONS[chip.implementation].dtypes
  for shape in {'kernels': KERNELS, 'long': (LONG,)}[what]:
    if shape[-1] not in dtypes:
      continue
    found = chip.compile(*program(shape, chip))
    rows, size, heads, *_ = shape
    found['square bytes'] = 4 * rows * heads[0] * size**2
    print(json.dumps(about | {'program': str(shape)} | found), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
