"""Code search: agreement, times and memory of its implementations.

    python -m abstractinator.benchmarks.nearest_code [--device gpu]

The first table holds the tiled search against the dense one, the second shows
it at codebooks and batches whose distances would not fit.
"""

import argparse
import functools
import sys
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks import op
from abstractinator.ops.nearest_code import nearest_code
from abstractinator.ops.nearest_code.support import SUPPORT
from abstractinator.runs import huge_pages


def problem(
  names: list[str], dtype: str, *, count: int, size: int, width: int
) -> op.Problem:
  """Vectors near random entries, each nearer to its own than to any other."""
  rng = np.random.default_rng(0)
  codebook = rng.normal(size=(size, width)).astype(np.float32)
  x = codebook[rng.integers(0, size, count)]
  x = jnp.asarray(x + 0.1 * rng.normal(size=x.shape), dtype)
  return op.Problem(
    op='nearest_code',
    size=dict(N=count, K=size, C=width),
    functions={
      name: functools.partial(
        nearest_code, codebook_KC=jnp.asarray(codebook), implementation=name
      )
      for name in names
    },
    args=(x,),
    is_differentiated=False,
    flops=2 * count * size * width,
    num_bytes=x.nbytes + codebook.nbytes + 4 * count,
  )


def run(args: argparse.Namespace) -> Iterator[list[dict]]:
  """The two tables."""
  names = [
    name
    for name, support in SUPPORT.items()
    if args.device in support.platforms and args.dtype in support.dtypes
  ]
  sizes, large = (2048, 1024, 64), ((4096, 4096, 64), (4096, 65536, 64))
  if args.small:
    sizes, large = (100, 16, 8), ((200, 16, 8),)
  fields = ('count', 'size', 'width')

  def of(names, sizes):
    return op.measure(
      problem(names, args.dtype, **dict(zip(fields, sizes, strict=True))),
      args.repeats,
    )

  yield of(names, sizes)
  yield [
    row
    for sizes in large
    for row in of([n for n in names if n != op.ORACLE], sizes)
  ]


if __name__ == '__main__':
  huge_pages.ensure()
  op.main('nearest_code', run, sys.argv[1:])
