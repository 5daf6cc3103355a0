"""Segment cross-attention: errors, times and memory of its implementations.

    python -m abstractinator.benchmarks.cross [--device gpu]

Segments are 4 ids long on average. The first tables hold each implementation
against the dense form, at lookbacks of 0, 3 and 8; the last the linear ones at
growing lengths, at a lookback of 3.
"""

import argparse
import functools
import sys
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks import op
from abstractinator.ops.segment_cross import segment_cross_attention
from abstractinator.ops.segment_cross.support import SUPPORT
from abstractinator.runs import huge_pages


def problem(
  names: list[str],
  dtype: str,
  *,
  batch: int,
  size: int,
  heads: int,
  width: int,
  slots: int,
  lookback: int,
) -> op.Problem:
  """Random queries, keys and values, of segments of 1 to 7 ids."""
  rng = np.random.default_rng(0)
  q = rng.normal(size=(batch, size, heads, width))
  k, v = rng.normal(size=(2, batch, slots, heads, width))
  ends = np.cumsum(rng.integers(1, 8, (batch, size)), axis=1)
  index = jnp.asarray(
    [np.searchsorted(row, np.arange(size), side='right') for row in ends],
    jnp.int32,
  )
  args = tuple(jnp.asarray(x, dtype) for x in (q, k, v))

  def attend(q, k, v, name):
    return segment_cross_attention(
      q,
      k,
      v,
      index_BT=index,
      lowest_BT=jnp.zeros_like(index),
      lookback=lookback,
      scale=width**-0.5,
      implementation=name,
    )

  return op.Problem(
    op='segment_cross',
    size=dict(B=batch, T=size, H=heads, A=width, P=slots, lookback=lookback),
    functions={name: functools.partial(attend, name=name) for name in names},
    args=args,
    is_differentiated=True,
    # Of one visible slot there is nothing to multiply.
    flops=4 * q.size * (lookback + 1) * (lookback > 0),
    num_bytes=(2 * args[0].nbytes + 2 * args[1].nbytes)
    if lookback
    else args[0].nbytes + args[2].nbytes,
  )


def run(args: argparse.Namespace) -> Iterator[list[dict]]:
  """A table a lookback, and one of lengths."""
  names = [
    name
    for name, support in SUPPORT.items()
    if args.device in support.platforms and args.dtype in support.dtypes
  ]
  sizes = dict(batch=4, size=2048, heads=8, width=32, slots=512)
  lookbacks, total, lengths = (0, 3, 8), 16384, (1024, 4096, 16384)
  linear = [name for name in names if name != op.ORACLE]
  if args.device != 'cpu':
    total, sizes = 65536, sizes | dict(batch=8, width=64)
  if args.small:
    sizes = dict(batch=2, size=256, heads=2, width=8, slots=64)
    lookbacks, total, lengths = (0, 3), 512, (256, 512)
  held = [(names, sizes, n) for n in lookbacks]
  if args.device != 'cpu' and not args.small:
    long = sizes | dict(size=8192, slots=2048)
    held += [(linear, long, n) for n in lookbacks]

  def of_length(size):
    return problem(
      linear,
      args.dtype,
      batch=total // size,
      size=size,
      heads=sizes['heads'],
      width=sizes['width'],
      slots=size // 4,
      lookback=3,
    )

  for names, sizes, lookback in held:
    yield op.measure(
      problem(names, args.dtype, **sizes, lookback=lookback), args.repeats
    )
  yield op.scaling(of_length, lengths, args.repeats)


if __name__ == '__main__':
  huge_pages.ensure()
  op.main('cross', run, sys.argv[1:])
