"""Self-attention: errors, times and memory of its implementations.

    python -m abstractinator.benchmarks.attention [--device gpu]

The first tables hold each implementation against the dense form, over a window
and without one; `jax.nn` is its masked path, which takes no documents, so rows
are of one. On GPU its cuDNN path and, where torch is there, FlexAttention stand
beside it, and the windows come again at a length that the dense form has no
memory for. The last table holds the linear ones at growing lengths.
"""

import argparse
import functools
import importlib.util
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks import flex_attention, op
from abstractinator.ops.attention import attention
from abstractinator.ops.attention.support import SUPPORT
from abstractinator.runs import huge_pages
from abstractinator.types import Array

_DENSE = ('reference', 'jax.nn')
# Of `jax.nn`: what it calls them. By XLA all scores, most of them masked.
_PEERS = {'jax.nn': 'xla', 'jax.nn cudnn': 'cudnn'}
_FLEX = 'flex_attention'


def of_jax(
  q_BSHA: Array,
  k_BSHA: Array,
  v_BSHA: Array,
  *,
  window: int | None,
  implementation: str,
) -> Array:
  """Attention of `jax.nn`."""
  return jax.nn.dot_product_attention(
    q_BSHA,
    k_BSHA,
    v_BSHA,
    is_causal=True,
    local_window_size=None if window is None else (window, 0),
    implementation=implementation,
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
    name: functools.partial(of_jax, window=window, implementation=_PEERS[name])
    if name in _PEERS
    else functools.partial(
      attention,
      group_BS=group,
      window=window,
      scale=width**-0.5,
      implementation=name,
    )
    for name in names
    if name != _FLEX
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
    peers={_FLEX: functools.partial(flex_attention.calls, *args, window=window)}
    if _FLEX in names
    else {},
  )


def run(args: argparse.Namespace) -> Iterator[list[dict]]:
  """Tables of windows, and one of lengths."""
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
  peers = []
  if args.device == 'gpu' and args.dtype != 'float32':
    peers = ['jax.nn cudnn']
    if importlib.util.find_spec('torch'):
      peers.append(_FLEX)
  if args.small:
    sizes = dict(batch=2, size=256, heads=2, width=8)
    windows, total, lengths = (15,), 512, (256, 512)
  linear = [name for name in names if name not in _DENSE]
  held = [
    # What it makes of no window is none of our business, and long in making.
    (['jax.nn', *names, *(peers if window else peers[:1])], sizes, window)
    for window in windows
  ]
  if args.device != 'cpu' and not args.small:
    long = sizes | dict(size=8192)
    held += [([*linear, *peers], long, x) for x in windows if x is not None]

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

  for names, sizes, window in held:
    yield op.measure(
      problem(names, args.dtype, **sizes, window=window), args.repeats
    )
  yield op.scaling(of_length, lengths, args.repeats)


if __name__ == '__main__':
  huge_pages.ensure()
  op.main('attention', run, sys.argv[1:])
