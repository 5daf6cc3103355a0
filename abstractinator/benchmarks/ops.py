"""Implementations of ops: each is held to the plain one, then timed.

    python -m abstractinator.benchmarks.ops
    python -m abstractinator.benchmarks.ops attention --dtype=bfloat16
    python -m abstractinator.benchmarks.ops nearest_code --size='N512 K256 C64'

Tables of one size hold each implementation to `reference`, and time it against
that. The others have sizes that `reference` has no memory for; where rows have
as many ids in all, a cost linear in the length shows as equal times. Segments
have 1 to 7 ids. Rows are one document, since `jax.nn`, whose attention stands
beside ours, takes no documents. On GPU its cuDNN path stands there too.
docs/kernels.md explains the columns and shows tables that were recorded with
`--json=docs/kernels/NAME.jsonl`.
"""

import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks import timing
from abstractinator.ops.attention import attention
from abstractinator.ops.implementation import OPS
from abstractinator.ops.nearest_code import nearest_code
from abstractinator.ops.segment_cross import segment_cross_attention
from abstractinator.ops.segment_pool import segment_pool
from abstractinator.runs import allocator
from abstractinator.types import Array

ORACLE = 'reference'
# Largest error of values and gradients, over the oracle's largest number.
_TOLERANCES = {'float32': 1e-5, 'bfloat16': 2e-2}
# Calls that an accelerator takes from a queue before one waits: launching a
# short call takes as long as running it.
_QUEUED_CALLS = {'cpu': 1, 'gpu': 16, 'tpu': 16}
# Attention of others: what `jax.nn` calls its own.
_JAX_NN = {'jax.nn': 'xla', 'jax.nn cudnn': 'cudnn'}
_Programs = Mapping[tuple[str, str], jax.stages.Compiled]

# Sizes by device in the letters of `types`: one that the oracle has memory for,
# and larger ones.
_ROWS = {
  'cpu': (
    'B4 S2048 H8 A32',
    ['B16 S1024 H8 A32', 'B4 S4096 H8 A32', 'B1 S16384 H8 A32'],
  ),
  'accelerator': (
    'B8 S2048 H8 A64',
    ['B64 S1024 H8 A64', 'B16 S4096 H8 A64', 'B8 S8192 H8 A64'],
  ),
}
_VECTORS = 'N2048 K1024', ['N4096 K4096', 'N4096 K65536']
# Further letters, each of which has tables of its own; W counts the query's id.
_FURTHER = {
  'attention': ['W64', 'W128', 'W512', ''],
  'segment_cross': ['lookback3', 'lookback0', 'lookback8'],
  'segment_pool': ['Q1'],
  'nearest_code': ['C64'],
}


@dataclasses.dataclass(frozen=True)
class Problem:
  """An op at one size.

  Attributes:
    op: Name of the op.
    size: Numbers behind their letters.
    function: The op; takes `args` and the name of an implementation.
    args: Arrays of floats. Of several, gradients are taken as well.
    flops: FLOPs that the forward pass asks for, however it is computed.
    num_bytes: Bytes that the forward pass must read and write.
  """

  op: str
  size: str
  function: Callable[..., Array]
  args: tuple[Array, ...]
  flops: float
  num_bytes: float

  @property
  def dtype(self) -> str:
    """Name of the type of the arrays."""
    return str(self.args[0].dtype)


def _segment_index(rng: np.random.Generator, B: int, S: int) -> Array:
  """Returns the segment of each id, of 1 to 7 ids, [B, S] int32."""
  ends = np.cumsum(rng.integers(1, 8, (B, S)), axis=1)
  rows = [np.searchsorted(row, np.arange(S), side='right') for row in ends]
  return jnp.asarray(np.stack(rows), jnp.int32)


def _attention(
  dtype: str, B: int, S: int, H: int, A: int, W: int | None = None
) -> Problem:
  qkv = np.random.default_rng(0).normal(size=(3, B, S, H, A))
  q, k, v = jnp.asarray(qkv, dtype)
  size = f'B{B} S{S} H{H} A{A}' + (f' W{W}' if W else '')
  group_BS = jnp.zeros((B, S), jnp.int32)
  window = None if W is None else W - 1

  def function(q: Array, k: Array, v: Array, implementation: str) -> Array:
    if implementation in _JAX_NN:
      kwargs: dict[str, Any] = dict(implementation=_JAX_NN[implementation])
      if window is not None:
        kwargs['local_window_size'] = (window, 0)
      return jax.nn.dot_product_attention(q, k, v, is_causal=True, **kwargs)
    kwargs = dict(window=window, scale=A**-0.5, implementation=implementation)
    return attention(q, k, v, group_BS=group_BS, **kwargs)

  # Visible pairs alone: fewer than W at the start of a row.
  reach = S if W is None else min(W, S)
  pairs = B * H * (S * reach - reach * (reach - 1) // 2)
  costs = 4 * pairs * A, 4 * q.nbytes
  return Problem('attention', size, function, (q, k, v), *costs)


def _segment_cross(
  dtype: str, B: int, S: int, H: int, A: int, lookback: int
) -> Problem:
  rng, P = np.random.default_rng(0), S // 4
  q = jnp.asarray(rng.normal(size=(B, S, H, A)), dtype)
  k, v = jnp.asarray(rng.normal(size=(2, B, P, H, A)), dtype)
  size = f'B{B} T{S} H{H} A{A} P{P} lookback{lookback}'
  index_BT = _segment_index(rng, B, S)
  function = functools.partial(
    segment_cross_attention,
    index_BT=index_BT,
    lowest_BT=jnp.zeros_like(index_BT),
    lookback=lookback,
    scale=A**-0.5,
  )
  # The one slot that is visible without lookback needs no product, no key.
  flops = 4 * q.size * (lookback + 1) * (lookback > 0)
  num_bytes = (q.nbytes + v.nbytes) * (2 if lookback else 1)
  args = q, k, v
  return Problem('segment_cross', size, function, args, flops, num_bytes)


def _segment_pool(
  dtype: str, B: int, S: int, H: int, A: int, Q: int
) -> Problem:
  rng, P = np.random.default_rng(0), S // 4
  score = jnp.asarray(rng.normal(size=(B, S, Q, H)), dtype)
  value = jnp.asarray(rng.normal(size=(B, S, H, A)), dtype)
  size = f'B{B} S{S} H{H} E{A} P{P} Q{Q}'
  function = functools.partial(
    segment_pool, index_BS=_segment_index(rng, B, S), num_slots=P
  )
  costs = 2 * Q * value.size, score.nbytes + value.nbytes * (1 + Q * P / S)
  return Problem('segment_pool', size, function, (score, value), *costs)


def _nearest_code(dtype: str, N: int, K: int, C: int) -> Problem:
  rng = np.random.default_rng(0)
  codebook = rng.normal(size=(K, C)).astype(np.float32)
  # Each vector is nearer to its own entry than to any other.
  near = codebook[rng.integers(0, K, N)] + 0.1 * rng.normal(size=(N, C))
  x = jnp.asarray(near, dtype)
  function = functools.partial(nearest_code, codebook_KC=jnp.asarray(codebook))
  costs = 2 * N * K * C, x.nbytes + codebook.nbytes + 4 * N
  return Problem('nearest_code', f'N{N} K{K} C{C}', function, (x,), *costs)


PROBLEMS: dict[str, Callable[..., Problem]] = {
  'attention': _attention,
  'segment_cross': _segment_cross,
  'segment_pool': _segment_pool,
  'nearest_code': _nearest_code,
}


def make_problem(op: str, size: str, dtype: str) -> Problem:
  """Returns a problem of random arrays; a size is numbers behind letters."""
  numbers = re.findall(r'([A-Za-z]+)(\d+)', size)
  try:
    return PROBLEMS[op](dtype, **{letter: int(n) for letter, n in numbers})
  except TypeError as error:
    raise ValueError(f'{op}: got size {size!r}: {error}') from error


def tables(op: str) -> Iterator[list[str]]:
  """Yields the sizes of each table of an op; those with one are held."""
  is_cpu = jax.default_backend() == 'cpu'
  held, larger = _ROWS['cpu' if is_cpu else 'accelerator']
  if op == 'nearest_code':
    held, larger = _VECTORS
  for further in _FURTHER[op]:
    yield [f'{held} {further}']
  # Attention without a window is slow at such lengths; a CPU has time for one.
  windows = [further for further in _FURTHER[op] if further]
  for further in windows[: 1 if is_cpu else None]:
    yield [f'{size} {further}' for size in larger]


def implementations(problem: Problem, *, has_oracle: bool) -> list[str]:
  """Returns the names of what can compute a problem here."""
  device = jax.default_backend()
  names = [
    name
    for name, can in OPS[problem.op].items()
    if device in can.platforms
    and problem.dtype in can.dtypes
    and name != 'pallas_interpret'
    and (name != 'mosaic_gpu' or _is_hopper())
    and (has_oracle or name != ORACLE)
  ]
  if problem.op == 'attention' and has_oracle:
    names.append('jax.nn')
  if problem.op == 'attention' and device == 'gpu' and 'cudnn' in names:
    names.append('jax.nn cudnn')
  return names


def _is_hopper() -> bool:
  return jax.devices()[0].compute_capability == '9.0'


def compile_programs(problem: Problem, names: Sequence[str]) -> _Programs:
  """Compiles implementations side by side.

  Phases are 'forward', and 'both' for the forward and the backward pass if
  gradients are taken.
  """

  def compiled(key: tuple[str, str]) -> jax.stages.Compiled:
    name, phase = key
    function = functools.partial(problem.function, implementation=name)

    def both(*args: Array) -> tuple[Array, tuple[Array, ...]]:
      out, pullback = jax.vjp(function, *args)
      return out, pullback(out)

    jitted = jax.jit(both if phase == 'both' else function)
    return jitted.lower(*problem.args).compile()

  phases = ['forward', 'both'][: len(problem.args)]
  keys = list(itertools.product(names, phases))
  with futures.ThreadPoolExecutor() as pool:
    return dict(zip(keys, pool.map(compiled, keys), strict=True))


def check(problem: Problem, programs: _Programs) -> dict[str, float]:
  """Compares values and gradients of implementations with the oracle's.

  Returns:
    The largest error of each, over the oracle's largest number.

  Raises:
    ValueError: If a result is wrong.
  """
  # The last phase, which overwrites the one before, has the results of all.
  results = {
    name: [
      np.asarray(x, np.float64) for x in jax.tree.leaves(run(*problem.args))
    ]
    for (name, _), run in programs.items()
  }
  wanted, allowed = results.pop(ORACLE), _TOLERANCES[problem.dtype]
  errors = dict.fromkeys(results, 0.0)
  for name, arrays in results.items():
    for got, want in zip(arrays, wanted, strict=True):
      # A gradient may be zero everywhere.
      scale = max(np.max(np.abs(want)), np.finfo(np.float32).tiny)
      error = float(np.max(np.abs(got - want)) / scale)
      # NaN is an error too.
      if not error <= allowed:
        raise ValueError(
          f'{problem.op} by {name}: is off by {error:.1e} of the largest,'
          f' allowed: {allowed}'
        )
      errors[name] = max(errors[name], error)
  return errors


def measure(
  problems: Sequence[Problem], names: Sequence[str], repeats: int
) -> list[dict[str, Any]]:
  """Compiles, checks and times implementations of problems, in turns.

  Args:
    problems: Problems of one table.
    names: Names of implementations; with the oracle, others are held to it.
    repeats: Number of calls of each.

  Returns:
    A row for each problem and implementation, with the columns that
    docs/kernels.md explains.

  Raises:
    ValueError: If a result is wrong.
  """
  programs = [compile_programs(problem, names) for problem in problems]
  runs = {
    (number, *key): functools.partial(run, *problems[number].args)
    for number, of_problem in enumerate(programs)
    for key, run in of_problem.items()
  }
  has_oracle = ORACLE in names
  pairs = zip(problems, programs, strict=True)
  errors = [check(*pair) if has_oracle else {} for pair in pairs]
  queued, dtype = _QUEUED_CALLS[jax.default_backend()], problems[0].dtype
  timings = timing.take_turns(runs, repeats, dtype=dtype, queued=queued)
  rows: dict[tuple[int, str], dict[str, Any]] = {}
  for (number, name, phase), _ in runs.items():
    problem, taken = problems[number], timings.seconds[number, name, phase]
    if phase == 'forward':
      rows[number, name] = dict(op=problem.op, size=problem.size, dtype=dtype)
      rows[number, name] |= dict(implementation=name)
      rows[number, name] |= dict(error=errors[number].get(name))
    row = rows[number, name]
    row[f'{phase} ms'] = 1e3 * taken
    if has_oracle:
      row[f'{phase} x'] = timings.seconds[number, ORACLE, phase] / taken
    memory: Any = programs[number][name, phase].memory_analysis()
    row[f'{phase} MiB'] = memory.temp_size_in_bytes / 2**20
  for (number, name), row in rows.items():
    problem = problems[number]
    floor = max(
      problem.flops / timings.flops_per_second,
      problem.num_bytes / timings.bytes_per_second,
    )
    row |= {'GFLOP': problem.flops / 1e9, 'MB': problem.num_bytes / 1e6}
    row['roofline'] = floor / timings.seconds[number, name, 'forward']
  return list(rows.values())


def main(argv: Sequence[str]) -> None:
  """Prints the tables of ops."""
  parser = timing.make_parser('ops', __doc__)
  parser.add_argument('op', nargs='*', metavar='OP', help=', '.join(PROBLEMS))
  parser.add_argument('--dtype', choices=_TOLERANCES, default='float32')
  parser.add_argument('--repeats', type=timing.positive, default=9)
  parser.add_argument('--size', help='one table of this size of one OP')
  args = parser.parse_args(argv)
  for op in args.op:
    if op not in PROBLEMS:
      parser.error(f'OP: got {op!r}, allowed: {", ".join(PROBLEMS)}')
  if args.size and len(args.op) != 1:
    parser.error(f'--size: got it for {len(args.op)} ops, allowed: 1')
  report = timing.Report(parser.prog, argv, args.json)
  for op in args.op or PROBLEMS:
    for sizes in [[args.size]] if args.size else tables(op):
      problems = [make_problem(op, size, args.dtype) for size in sizes]
      names = implementations(problems[0], has_oracle=len(sizes) == 1)
      report.add(measure(problems, names, args.repeats))


if __name__ == '__main__':
  allocator.keep_memory()
  main(sys.argv[1:])
