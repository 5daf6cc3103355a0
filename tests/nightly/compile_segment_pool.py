"""Compiles segment pooling for chips; prints one line of JSON per program.

    python tests/nightly/compile_segment_pool.py v5e-4 kernels

`kernels` compiles many shapes. `long` compiles the shape whose cycles are
counted, without the code that runs only for ids whose slots are far apart.
"""

import functools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from tests.nightly.one_chip import OneChip  # noqa: I001

import jax

from abstractinator.ops.segment_pool import pallas_kernels, segment_pool

# Rows, ids, queries, heads, width of a head, slots, type.
KERNELS = (
  (2, 2048, 1, 8, 64, 512, 'bfloat16'),
  (2, 2048, 2, 8, 32, 512, 'float32'),
  (2, 1000, 1, 3, 40, 77, 'bfloat16'),
  (1, 100, 1, 4, 16, 30, 'float32'),
  # Heads are in groups: the slots of all heads do not fit.
  (1, 16384, 1, 16, 128, 4096, 'bfloat16'),
)
LONG = (8, 8192, 1, 8, 64, 2048, 'bfloat16')


def program(shape, chip):
  """Returns a function that pools and its arguments."""
  rows, size, queries, heads, width, slots, dtype = shape

  def both(score, value, index):
    pool = functools.partial(
      segment_pool,
      index_BS=index,
      num_slots=slots,
      implementation=chip.implementation,
    )
    out, pullback = jax.vjp(pool, score, value)
    return out, *pullback(out)

  return both, (
    chip.array((rows, size, queries, heads), dtype),
    chip.array((rows, size, heads, width), dtype),
    chip.array((rows, size), 'int32'),
  )


def main(topology, what):
  chip = OneChip(topology)
  if what == 'long':
    # Slots that rise one by one never need a second window.
    pallas_kernels.is_wide = lambda *_: False
  for shape in {'kernels': KERNELS, 'long': (LONG,)}[what]:
    found = {'topology': topology, 'program': str(shape)}
    found |= chip.compile(*program(shape, chip))
    rows, size, queries, heads, _, slots, _ = shape
    found['dense bytes'] = 4 * rows * size * slots * queries * heads
    print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
