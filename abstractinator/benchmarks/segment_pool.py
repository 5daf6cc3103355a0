"""Segment pooling: errors, times and memory of its implementations.

    python -m abstractinator.benchmarks.segment_pool [--device gpu]

Segments are 4 ids long on average. The first table holds each implementation
against the dense form, the last the linear ones at growing lengths; on GPU and
TPU there is one between them, of a size that fills the device.
"""

import argparse
import functools
import sys
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks import op
from abstractinator.ops.segment_pool import segment_pool
from abstractinator.ops.segment_pool.support import SUPPORT
from abstractinator.runs import huge_pages

_LINEAR = ('xla', 'xla_deterministic', 'pallas_tpu', 'pallas_triton')


def problem(
  names: list[str],
  dtype: str,
  *,
  batch: int,
  size: int,
  heads: int,
  width: int,
  slots: int,
  queries: int = 1,
) -> op.Problem:
  """Random scores and values, of segments of 1 to 7 ids."""
  rng = np.random.default_rng(0)
  score = rng.normal(size=(batch, size, queries, heads))
  value = rng.normal(size=(batch, size, heads, width))
  lengths = rng.integers(1, 8, (batch, size))
  ends = np.cumsum(lengths, axis=1)
  index = jnp.asarray(
    [np.searchsorted(row, np.arange(size), side='right') for row in ends],
    jnp.int32,
  )
  args = tuple(jnp.asarray(x, dtype) for x in (score, value))
  out = batch * slots * queries * heads * width
  return op.Problem(
    op='segment_pool',
    size=dict(B=batch, S=size, H=heads, E=width, P=slots, Q=queries),
    functions={
      name: functools.partial(
        segment_pool, index_BS=index, num_slots=slots, implementation=name
      )
      for name in names
    },
    args=args,
    is_differentiated=True,
    flops=2 * batch * size * queries * heads * width,
    num_bytes=sum(x.nbytes for x in args) + out * args[1].dtype.itemsize,
  )


def run(args: argparse.Namespace) -> Iterator[list[dict]]:
  """The tables."""
  names = [
    name
    for name, support in SUPPORT.items()
    if args.device in support.platforms
    and args.dtype in support.dtypes
    and name != 'pallas_interpret'
  ]
  sizes = dict(batch=4, size=2048, heads=8, width=32, slots=512)
  total, lengths = 16384, (1024, 4096, 16384)
  linear = [name for name in names if name in _LINEAR]
  held = [(names, sizes)]
  if args.device != 'cpu':
    total, sizes = 65536, sizes | dict(batch=8, width=64)
    held = [(names, sizes), (linear, sizes | dict(size=8192, slots=2048))]
  if args.small:
    sizes = dict(batch=2, size=256, heads=2, width=8, slots=64)
    total, lengths, held = 512, (256, 512), [(names, sizes)]

  def of_length(size):
    return problem(
      linear,
      args.dtype,
      batch=total // size,
      size=size,
      heads=sizes['heads'],
      width=sizes['width'],
      slots=size // 4,
    )

  for names, sizes in held:
    yield op.measure(problem(names, args.dtype, **sizes), args.repeats)
  yield op.scaling(of_length, lengths, args.repeats)


if __name__ == '__main__':
  huge_pages.ensure()
  op.main('segment_pool', run, sys.argv[1:])
