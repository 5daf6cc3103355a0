"""Compiles segment pooling for a TPU topology; prints what came of it.

    python tests/nightly/compile_segment_pool.py v5e:2x2 kernels

A line of JSON for each program. `kernels` compiles many shapes, `long` the one
whose cycles are counted: less what only ids run whose slots are far apart.
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from abstractinator.ops.segment_pool import segment_pool, slot_windows

# Rows, ids, queries, heads, width of a head, slots, type.
KERNELS = (
  (2, 2048, 1, 8, 64, 512, 'bfloat16'),
  (2, 2048, 2, 8, 32, 512, 'float32'),
  (2, 1000, 1, 3, 40, 77, 'bfloat16'),
  (1, 100, 1, 4, 16, 30, 'float32'),
  # Heads in groups: slots of all of them do not fit.
  (1, 16384, 1, 16, 128, 4096, 'bfloat16'),
)
LONG = (8, 8192, 1, 8, 64, 2048, 'bfloat16')


def program(shape, make):
  """A function of pooling and its arguments."""
  rows, size, queries, heads, width, slots, dtype = shape

  def both(score, value, index):
    pool = functools.partial(
      segment_pool, index_BS=index, num_slots=slots, implementation='pallas_tpu'
    )
    out, pullback = jax.vjp(pool, score, value)
    return out, *pullback(out)

  return both, (
    make((rows, size, queries, heads), dtype),
    make((rows, size, heads, width), dtype),
    make((rows, size), 'int32'),
  )


def main(topology, what):
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  mesh = Mesh(np.array(devices[:1]), ('data',))
  make = functools.partial(
    jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P())
  )
  if what == 'long':
    # Slots that rise one by one never need a second window.
    slot_windows.is_wide = lambda *_: False
  for shape in {'kernels': KERNELS, 'long': (LONG,)}[what]:
    function, args = program(shape, make)
    with jax.set_mesh(mesh):
      compiled = jax.jit(function).lower(*args).compile()
    rows, size, queries, heads, _, slots, _ = shape
    found = {
      'topology': topology,
      'program': str(shape),
      'kernels': compiled.as_text().count(
        'custom_call_target="tpu_custom_call"'
      ),
      'temporary bytes': compiled.memory_analysis().temp_size_in_bytes,
      'dense bytes': 4 * rows * size * slots * queries * heads,
    }
    print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
