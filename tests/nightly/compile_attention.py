"""Compiles attention, or a step, for a TPU topology; prints what came of it.

    python tests/nightly/compile_attention.py v5e:2x2 kernels

A line of JSON for each program. `kernels` compiles many shapes, `long` the one
whose cycles are counted, and the name of a config its training step.
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

from abstractinator.benchmarks import sizes
from abstractinator.ops.attention import attention
from abstractinator.training.program import make_program
from abstractinator.types import Batch

# Rows, ids, heads of queries, keys and values, two widths, window, type.
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


def program(shape, make):
  """A function of attention and its arguments."""
  rows, size, heads, widths, window, dtype = shape
  args = [
    make((rows, size, count, width), dtype)
    for count, width in zip(heads, (widths[0], *widths), strict=True)
  ]

  def both(q, k, v, group):
    run = functools.partial(
      attention,
      group_BS=group,
      window=window,
      scale=0.125,
      implementation='pallas_tpu',
    )
    out, pullback = jax.vjp(run, q, k, v)
    return out, *pullback(out)

  return both, (*args, make((rows, size), 'int32'))


def step(name, make):
  """The training step of a config and its arguments."""
  config = sizes.load(name)
  run = make_program(config, 'tpu', total_steps=10_000)
  state = jax.eval_shape(run.init, jax.random.key(0))
  state = jax.tree.map(lambda x: make(x.shape, x.dtype), state)
  # Of the config but one row: how many there are changes nothing else.
  ids_BS = make((1, config.data.sequence_length), 'int32')
  return run.step, (state, Batch(ids_BS, ids_BS, make((1,), 'int32')))


def main(topology, what):
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  mesh = Mesh(np.array(devices[:1]), ('data',))
  make = functools.partial(
    jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, P())
  )
  shapes = {'kernels': KERNELS, 'long': (LONG,)}.get(what, ())
  programs = [program(shape, make) for shape in shapes]
  for i, (function, args) in enumerate(programs or [step(what, make)]):
    with jax.set_mesh(mesh):
      compiled = jax.jit(function).lower(*args).compile()
    found = dict(
      topology=topology,
      program=what if not shapes else str(shapes[i]),
      kernels=compiled.as_text().count('custom_call_target="tpu_custom_call"'),
    )
    memory = compiled.memory_analysis()
    found['temporary bytes'] = memory.temp_size_in_bytes
    if shapes:
      rows, size, heads, *_ = shapes[i]
      found['square bytes'] = 4 * rows * heads[0] * size**2
    print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
