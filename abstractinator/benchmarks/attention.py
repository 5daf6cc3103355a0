"""Self-attention: errors, times and memory of its implementations.

    python -m abstractinator.benchmarks.attention [--device gpu]

The first tables hold each implementation against the dense form, over a window
and without one; `jax.nn` is its masked path, which takes no documents, so rows
are of one. The last holds the linear ones at growing lengths.
"""

import argparse
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator import huge_pages
from abstractinator.benchmarks import op
from abstractinator.ops.attention import attention
from abstractinator.ops.attention.support import SUPPORT
from abstractinator.types import Array

_DENSE = ('reference', 'jax.nn')


def masked(
  q_BSHA: Array, k_BSHA: Array, v_BSHA: Array, *, window: int | None
) -> Array:
  """What `jax.nn` does by XLA: all scores, most of them masked."""
  return jax.nn.dot_product_attention(
    q_BSHA,
    k_BSHA,
    v_BSHA,
    is_causal=True,
    local_window_size=None if window is None else (window, 0),
    implementation='xla',
  )


def problem(
  names: list[str],
  dtype: str,
  *,
  batch: int,
  size: int,
  heads: int,
  width: int,
  window: int | None,
) -> op.Problem:
  """Random queries, keys and values, rows of one document."""
  rng = np.random.default_rng(0)
  shape = batch, size, heads, width
  args = tuple(jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3))
  group = jnp.zeros((batch, size), jnp.int32)
  functions = {
    name: functools.partial(masked, window=window)
    if name == 'jax.nn'
    else functools.partial(
      attention,
      group_BS=group,
      window=window,
      scale=width**-0.5,
      implementation=name,
    )
    for name in names
  }
  # What is seen, and no more: less at the start of a row.
  reach = size if window is None else min(window + 1, size)
  scores = batch * heads * (size * reach - reach * (reach - 1) // 2)
  letters = dict(B=batch, S=size, H=heads, A=width)
  return op.Problem(
    op='attention',
    size=letters if window is None else letters | dict(W=window + 1),
    functions=functions,
    args=args,
    is_differentiated=True,
    flops=4 * scores * width,
    num_bytes=4 * args[0].nbytes,
  )


def run(args: argparse.Namespace) -> list[list[dict]]:
  """Two tables against the dense form, and one of lengths."""
  names = [
    name
    for name, support in SUPPORT.items()
    if args.device in support.platforms
    and args.dtype in support.dtypes
    and name != 'pallas_interpret'
  ]
  sizes = dict(batch=4, size=2048, heads=8, width=32)
  windows, total, lengths = (63, 127, None), 16384, (1024, 4096, 16384)
  if args.device != 'cpu':
    sizes |= dict(batch=8, width=64)
    windows, total = (63, 127, 511, None), 65536
  if args.small:
    sizes = dict(batch=2, size=256, heads=2, width=8)
    windows, total, lengths = (15,), 512, (256, 512)
  linear = [name for name in names if name not in _DENSE]

  def of_length(size):
    return problem(
      linear,
      args.dtype,
      batch=total // size,
      size=size,
      heads=sizes['heads'],
      width=sizes['width'],
      window=windows[0],
    )

  return [
    *(
      op.measure(
        problem(['jax.nn', *names], args.dtype, **sizes, window=window),
        args.repeats,
      )
      for window in windows
    ),
    op.scaling(of_length, lengths, args.repeats),
  ]


if __name__ == '__main__':
  huge_pages.ensure()
  jax.config.update('jax_enable_compilation_cache', False)
  op.main('attention', run, sys.argv[1:])
