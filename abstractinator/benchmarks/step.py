r"""Speed and memory of training steps on one device, on random bytes.

    python -m abstractinator.benchmarks.step
    python -m abstractinator.benchmarks.step regular_pallas \
      --set model.dtype=bfloat16 --vary model.implementation.remat=blocks
    python -m abstractinator.benchmarks.step --sizes

Run it from the repository. A config is the name of a file of `configs/`; none
stands for `original_timed` at four lengths of rows, with as many bytes in each
batch, so that a cost linear in the length shows as equal times and memory.

All steps compile side by side, then take turns, one step each, with two
measures of the machine: its own matrix product, and a step of a plain
transformer, as wide as the first config and of about as many FLOPs. FLOPs are
those of `training.flops.model_flops`: matrix products of the model, counted
once, so what `remat` computes again is not in them. In the table, `x` is kB/s
over that of the first row; `of matmul`, `of plain` and `of peak` are FLOP/s
over those of the machine's product, of the plain transformer, and of the chip's
data sheet; GiB are state, batch and temporaries.
"""

import collections
import functools
import math
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from abstractinator.benchmarks import timing
from abstractinator.cli import config_file
from abstractinator.config import RunConfig
from abstractinator.runs import allocator
from abstractinator.runs.chips import chip_of
from abstractinator.training.flops import model_flops, training_flops
from abstractinator.training.program import make_program, state_shapes
from abstractinator.types import NUM_BYTES, Array, Batch, PyTree

DEFAULT = 'original_timed'
DEFAULT_VARIED = [
  [f'data.sequence_length={4096 // rows}', f'data.batch_size={rows}']
  for rows in (4, 2, 1)
]
_WARMUP_STEPS = 3
# Longest row of the plain transformer: attention over all earlier bytes would
# take most of the FLOPs of a longer one, half of them for what it masks.
_PLAIN_LENGTH = 512


class TimedStep:
  """A compiled training step with its state.

  Attributes:
    name: Name in tables.
    shape: Rows of a batch and bytes of a row, (B, S).
    dtype: Compute type.
    flops: FLOPs of a step; see `training.flops.training_flops`.
    compiled: The program.
  """

  def __init__(
    self,
    name: str,
    step: Callable[..., tuple[PyTree, Any]],
    state: PyTree,
    batch: PyTree,
    dtype: str,
    flops: int,
  ):
    """Compiles a function of a state and a batch, to the next state."""
    self.name, self.dtype, self.flops = name, dtype, flops
    self.shape = jax.tree.leaves(batch)[0].shape
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    self.compiled = lowered.compile()
    self._state, self._batch = state, batch

  def take(self) -> Any:
    """Takes a step; returns arrays to wait for."""
    self._state, output = self.compiled(self._state, self._batch)
    return output


def random_batch(shape: tuple[int, int]) -> Batch:
  """Returns rows of printable bytes, one document each, of shape [B, S]."""
  ids_BS = np.random.default_rng(0).integers(32, 127, shape, dtype=np.int32)
  return Batch(jnp.asarray(ids_BS), jnp.zeros(shape, int), jnp.arange(shape[0]))


def compile_step(name: str, config: RunConfig) -> TimedStep:
  """Compiles a run's step for the device at hand, and makes its first state."""
  data = config.data
  # The length of a run decides the learning rate alone.
  total_steps = config.optimizer.warmup_steps + 1000
  program = make_program(config, jax.default_backend(), total_steps)
  state = jax.jit(program.init)(jax.random.key(0))
  batch = random_batch((data.batch_size, data.sequence_length))
  dtype, flops = config.model.dtype, model_flops(config)
  return TimedStep(name, program.step, state, batch, dtype, flops)


class PlainTransformer(nn.Module):
  """A decoder-only byte transformer, which attends to all earlier bytes.

  Attributes:
    width: Width of the model; feed-forward layers are four times as wide.
    num_heads: Number of attention heads.
    dtype: Compute type.
    num_layers: Number of blocks.
  """

  width: int
  num_heads: int
  dtype: str
  num_layers: int

  @nn.compact
  def __call__(self, ids_BS: Array) -> Array:
    """Returns the logits of the next byte, [B, S, 256] float32."""
    norm = functools.partial(nn.RMSNorm, dtype=self.dtype)
    dense = functools.partial(nn.Dense, dtype=self.dtype, use_bias=False)
    mask = nn.make_causal_mask(ids_BS)
    x_BSD = nn.Embed(NUM_BYTES, self.width, dtype=self.dtype)(ids_BS)
    for _ in range(self.num_layers):
      attention = nn.MultiHeadDotProductAttention(
        self.num_heads, dtype=self.dtype, use_bias=False
      )
      x_BSD += attention(norm()(x_BSD), mask=mask)
      wide = nn.gelu(dense(4 * self.width)(norm()(x_BSD)))
      x_BSD += dense(self.width)(wide)
    return dense(NUM_BYTES)(norm()(x_BSD)).astype(jnp.float32)

  def loss(self, params: PyTree, ids_BS: Array) -> Array:
    """Computes the mean cross-entropy of the next byte, in nats."""
    logits_BSV: Any = self.apply(params, ids_BS)
    return optax.losses.softmax_cross_entropy_with_integer_labels(
      logits_BSV[:, :-1], ids_BS[:, 1:]
    ).mean()


def compile_plain(config: RunConfig) -> TimedStep:
  """Compiles a step of a plain transformer that a run is compared with.

  It has the width and heads of the first level of the run, is trained by AdamW
  on as many bytes, and has the number of layers whose FLOPs come next.
  """
  level, dtype = config.model.levels[0], config.model.dtype
  length = math.gcd(config.data.sequence_length, _PLAIN_LENGTH)
  rows = config.data.batch_size * config.data.sequence_length // length
  ids_BS = random_batch((rows, length)).ids_BS
  optimizer = optax.adamw(1e-3)

  def plain(num_layers: int) -> tuple[PlainTransformer, int]:
    heads = level.encoder.num_heads
    model = PlainTransformer(level.d_model, heads, dtype, num_layers)
    params = jax.eval_shape(model.init, jax.random.key(0), ids_BS)
    return model, training_flops(model.loss, params, ids_BS)

  rest, with_one = plain(0)[1], plain(1)[1]
  num_layers = round((model_flops(config) - rest) / (with_one - rest))
  model, flops = plain(max(num_layers, 1))

  def step(state: PyTree, ids_BS: Array) -> tuple[PyTree, Array]:
    params, moments = state
    loss, grads = jax.value_and_grad(model.loss)(params, ids_BS)
    updates, moments = optimizer.update(grads, moments, params)
    return (optax.apply_updates(params, updates), moments), loss

  params = jax.jit(model.init)(jax.random.key(0), ids_BS)
  state = params, optimizer.init(params)
  return TimedStep('plain transformer', step, state, ids_BS, dtype, flops)


def measure(steps: Sequence[TimedStep], num_steps: int) -> list[dict[str, Any]]:
  """Times steps in turns, the last of them the plain transformer's.

  Args:
    steps: Compiled steps.
    num_steps: Number of steps of each that are timed.

  Returns:
    A row for each, with the columns that the module explains.
  """
  timings = timing.take_turns(
    {number: step.take for number, step in enumerate(steps)},
    num_steps,
    dtype=steps[0].dtype,
    warmup=_WARMUP_STEPS,
  )
  chip = chip_of(jax.devices()[0].device_kind)
  rows: list[dict[str, Any]] = []
  for number, step in enumerate(steps):
    seconds = timings.seconds[number]
    memory: Any = step.compiled.memory_analysis()
    num_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    speed, rate = math.prod(step.shape) / seconds, step.flops / seconds
    plain_rate = steps[-1].flops / timings.seconds[len(steps) - 1]
    row = {'config': step.name, 'B': step.shape[0], 'S': step.shape[1]}
    row |= {'dtype': step.dtype, 'GiB': num_bytes / 2**30}
    row |= {'step ms': 1e3 * seconds, 'kB/s': speed / 1e3}
    row['x'] = row['kB/s'] / rows[0]['kB/s'] if rows else 1.0
    row |= {'TFLOP/s': rate / 1e12, 'of plain': rate / plain_rate}
    row['of matmul'] = rate / timings.flops_per_second
    row['of peak'] = rate / chip.flops_per_second if chip else None
    rows.append(row)
  return rows


def sizes(config: RunConfig) -> dict[str, Any]:
  """Returns the sizes of a run on one device; nothing is computed.

  They are the number of parameters, the bytes of the `TrainState`, which a
  checkpoint holds, FLOPs of a step, as if nothing were frozen, and parameters
  by part: levels of a pyramid or parts of a single level, and the top LM.
  """
  state = state_shapes(config)
  parts: dict[str, int] = collections.defaultdict(int)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    keys = [entry.key for entry in path]
    if len(config.model.levels) == 1:
      keys = [key for key in keys if key not in ('level_0', 'compressor')]
    parts[keys[0]] += leaf.size
  leaves = jax.tree.leaves(state)
  return {
    'parameters': sum(parts.values()),
    'state bytes': sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves),
    'FLOP a step': model_flops(config),
    **parts,
  }


def main(argv: Sequence[str]) -> None:
  """Prints a table of steps, or of the sizes of configs."""
  parser = timing.make_parser('step', __doc__)
  parser.add_argument('name', nargs='*', help='configs')
  config_file.add_overrides(parser)
  about = 'each config once more, with these settings; may come several times'
  several: Any = dict(metavar='PATH=VALUE', nargs='+', action='append')
  parser.add_argument('--vary', **several, default=[], help=about)
  parser.add_argument('--steps', type=timing.positive, default=10)
  about = 'print parameters, bytes of state and FLOPs, and time nothing'
  parser.add_argument('--sizes', action='store_true', help=about)
  args = parser.parse_args(argv)
  names, varied = args.name, args.vary
  if not names and args.sizes:
    names = config_file.names()
  elif not names:
    names, varied = [DEFAULT], varied or DEFAULT_VARIED
  try:
    configs = {
      ', '.join([name, *extra]): config_file.load(name, [*args.set, *extra])
      for name in names
      for extra in [[], *varied]
    }
  except ValueError as error:
    parser.error(str(error))
  report = timing.Report(parser.prog, argv, args.json)
  if args.sizes:
    report.add([{'config': name} | sizes(x) for name, x in configs.items()])
    return
  with futures.ThreadPoolExecutor() as pool:
    plain = pool.submit(compile_plain, next(iter(configs.values())))
    steps = list(pool.map(compile_step, configs, configs.values()))
  report.add(measure([*steps, plain.result()], args.steps))


if __name__ == '__main__':
  allocator.keep_memory()
  main(sys.argv[1:])
