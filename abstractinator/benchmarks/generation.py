r"""Generation and decoding: how fast they are.

    python -m abstractinator.benchmarks.generation continue
    python -m abstractinator.benchmarks.generation continue \
      --config=regular_pallas --contexts 512 --batches 1 16 256
    python -m abstractinator.benchmarks.generation decode
    python -m abstractinator.benchmarks.generation decode --run=RUN --text=FILE

Run it from the repository. Without a run weights are random, of a config with
one level: by default `original_timed` in the size at which generation by the
PyTorch original was timed, 64 wide, with 2 + 2 + 2 layers.

continue: Time of a new byte by length of the prompts and size of the batch,
  with caches; of a prompt; and of one whole call (`anew`), of which the
  original needs several for each byte. Ids and ends of segments are drawn, at a
  temperature of 1: the most likely end of random weights is at once, and
  segments of one byte are the cheapest. The roofline is the time to read the
  parameters that a byte needs at least: those of the top LM once a segment, of
  the expander once a byte, or, where segments are decoded side by side, once
  for the bytes at one place in all segments of a call.
decode: One row of codes to bytes, in float32: many segments side by side, each
  distinct context of codes once, and one id after the other, with a cache. Both
  give the same; a step calls the expander once. Codes are those of a text, read
  by the first level of a run; without a run they are random.
"""

import argparse
import dataclasses
import functools
import itertools
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator import inference
from abstractinator.benchmarks import timing
from abstractinator.cli import config_file
from abstractinator.decoding import continue_texts, generate
from abstractinator.decoding.lanes import decode_distinct
from abstractinator.decoding.options import Options
from abstractinator.decoding.pyramid import AbstractinatorPyramid, make_model
from abstractinator.decoding.rows import decode_greedily
from abstractinator.decoding.segments import SegmentCodes
from abstractinator.runs import allocator
from abstractinator.runs.load import read_trained
from abstractinator.types import PAD_ID, Array, Batch, PyTree

_CONFIG, _PATH = 'original_timed', 'model.levels[0]'
_SIZE = (
  f'{_PATH}.d_model=64',
  f'{_PATH}.expander.num_layers=2',
  *(
    f'{_PATH}.{x}.ffn_dim=256' for x in ('entropy_model', 'encoder', 'expander')
  ),
)
# Prompts are ends of texts of this length: all lengths are continued alike.
_LONGEST = 1 << 16
_REPEATS = 5
# Bytes for each random segment that is decoded.
_SEGMENT_BYTES = 2


def random_variables(model: AbstractinatorPyramid) -> PyTree:
  """Returns random weights, with which a top LM ends no document by itself."""
  ids_BS = jnp.full((1, 64), PAD_ID, jnp.int32)
  batch = Batch(ids_BS, ids_BS * 0, ids_BS[:, 0])
  variables = jax.jit(model.init)(jax.random.key(0), batch)
  flat = flax.traverse_util.flatten_dict(variables)
  path = ('params', 'top_lm', 'end_head', 'kernel')
  if path in flat:
    # Odds of 1: where the more likely is done, a document ends above that.
    flat[path] = jnp.zeros_like(flat[path])
  return flax.traverse_util.unflatten_dict(flat)


def continue_once(
  model: AbstractinatorPyramid,
  variables: PyTree,
  ids_BS: Array,
  num_calls: int,
) -> tuple[float, float, float, float]:
  """Continues prompts, [B, S] int32, in calls of 16 segments a row.

  Returns:
    Seconds and CPU seconds of a new byte of the batch, CPU seconds of a prompt,
    and bytes of a segment.
  """
  options = Options(temperature=0.0, level_temperature=1.0)
  rows, context = ids_BS.shape
  # Texts go on until the last call: random weights would end them anywhere.
  request = dataclasses.replace(
    continue_texts.request_of(options, np.arange(rows)),
    limit_B=jnp.full(rows, 1 << 30, jnp.int32),
  )
  none_B = np.zeros(rows, bool)
  began = time.process_time()
  state = continue_texts.start_program(
    *(variables, ids_BS, np.full(rows, context, np.int32), request),
    model=model,
    capacity=continue_texts.row_size(context + options.max_new_bytes),
    entropy_model_only=False,
  )
  first_B = np.asarray(state.levels[0].slot_B)
  prompt = (time.process_time() - began) / rows
  wall, cpu, num_bytes = time.perf_counter(), time.process_time(), 0
  for _ in range(num_calls):
    state = dataclasses.replace(state, is_done_B=jnp.asarray(none_B))
    (_, new_B), state = continue_texts.extend_program(
      variables, state, none_B, model=model
    )
    num_bytes += int(np.sum(new_B))
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  num_segments = int(np.sum(np.asarray(state.levels[0].slot_B) - first_B))
  return wall / num_bytes, cpu / num_bytes, prompt, num_bytes / num_segments


def bytes_read(
  model: AbstractinatorPyramid, variables: PyTree, length: float
) -> float:
  """Returns the bytes of parameters that a new byte needs at least.

  Args:
    model: A model of one level.
    variables: Variables of the model.
    length: Mean bytes of a segment.
  """
  (level,) = model.config.levels
  flat = flax.traverse_util.flatten_dict(variables['params'])
  count = {'expander': 0.0, 'top_lm': 0.0}
  for path, x in flat.items():
    for name in count:
      count[name] += x.size if name in path else 0
  if level.expander.context == 'segment':
    count['expander'] /= generate.SLOTS
  # The top LM takes a step for each code.
  count['top_lm'] *= level.pooling.num_queries / length
  return sum(count.values()) * jnp.dtype(model.dtype).itemsize


def continue_prompts(
  model: AbstractinatorPyramid,
  batches: Sequence[int],
  contexts: Sequence[int],
  num_calls: int,
) -> Iterator[dict[str, Any]]:
  """Yields a row for each size of a batch and length of prompts."""
  variables = random_variables(model)

  @jax.jit
  def whole_call(variables: PyTree, ids_BS: Array) -> Array:
    batch = Batch(ids_BS, jnp.zeros_like(ids_BS), ids_BS[:, 0])
    output: Any = model.apply(variables, batch)
    return output.levels[0].expanded.best_BS[:, -1]

  def anew(ids_BS: Array) -> float:
    began = time.process_time()
    jax.block_until_ready(whole_call(variables, ids_BS))
    return (time.process_time() - began) / len(ids_BS)

  for rows, context in itertools.product(batches, contexts):
    rng = np.random.default_rng(0)
    ids = rng.integers(32, 127, (rows, max(context, _LONGEST)))
    ids_BS = jnp.asarray(ids[:, -context:], jnp.int32)
    # The first of each compiles.
    times = [
      (*continue_once(model, variables, ids_BS, num_calls), anew(ids_BS))
      for _ in range(_REPEATS + 1)
    ]
    wall, cpu, prompt, length, whole = map(min, zip(*times[1:], strict=True))
    rate = timing.take_turns({}, _REPEATS).bytes_per_second
    read_seconds = bytes_read(model, variables, length) / rate
    yield {
      'rows': rows,
      'context': context,
      'bytes/s': 1 / wall,
      'CPU-ms/byte': 1e3 * cpu,
      'anew, CPU-ms/byte': 1e3 * whole,
      'prompt, CPU-ms': 1e3 * prompt,
      'bytes/segment': length,
      'of roofline': read_seconds / (rows * wall),
    }


def _num_steps(program: Callable[..., Any], *args: PyTree) -> int:
  """Runs a program that decodes; returns how often it calls the expander."""
  calls: list[None] = []

  def counted(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if context.method_name == 'greedy':
      jax.debug.callback(lambda: calls.append(None))
    return call(*args, **kwargs)

  with nn.intercept_methods(counted):
    jax.block_until_ready(jax.jit(program)(*args))
  jax.effects_barrier()
  return len(calls)


def decode(
  model: AbstractinatorPyramid,
  variables: PyTree,
  codes_N: np.ndarray,
  repeats: int,
) -> Iterator[dict[str, Any]]:
  """Yields a row for each way to decode codes of the first level.

  Raises:
    AssertionError: If the results differ.
  """
  config = model.config.levels[0]
  codes_PQ = codes_N.reshape(-1, config.pooling.num_queries)
  codes_BU = jnp.asarray(codes_N)[None]
  shape = 1, len(codes_PQ)
  slots = jnp.ones(shape, bool), jnp.zeros(shape, jnp.int32)

  def side_by_side(model: AbstractinatorPyramid, codes_BU: Array) -> Any:
    return decode_distinct(model.levels[0], codes_BU, *slots)

  def one_by_one(model: AbstractinatorPyramid, codes_BU: Array) -> Any:
    level = model.levels[0]
    most = len(codes_PQ) * config.segmentation.max_length
    codes = SegmentCodes.of(level, codes_BU, slots[1])
    return decode_greedily(level, codes, slots[0], most)

  runs, results = {}, {}
  for method in (side_by_side, one_by_one):
    run = jax.jit(functools.partial(model.apply, method=method))
    with jax.default_matmul_precision('highest'):
      program = run.lower(variables, codes_BU).compile()
    runs[method.__name__] = functools.partial(program, variables, codes_BU)
    results[method.__name__] = jax.device_get(runs[method.__name__]())
  for found, want in zip(*results.values(), strict=True):
    np.testing.assert_array_equal(found, want)
  timings = timing.take_turns(runs, repeats)
  # The first segment of each distinct context.
  first = {
    codes_PQ[max(slot - config.expander.lookback, 0) : slot + 1].tobytes(): slot
    for slot in reversed(range(len(codes_PQ)))
  }
  length_P = results['one_by_one'][1][0]
  apply = functools.partial(model.apply, method=side_by_side)
  num_steps = {'side_by_side': _num_steps(apply, variables, codes_BU)}
  decoded = {'side_by_side': length_P[list(first.values())]}
  for name, seconds in timings.seconds.items():
    lengths = decoded.get(name, length_P)
    yield {
      'decoded': name,
      'bytes': int(length_P.sum()),
      'segments': len(lengths),
      'ids': int(lengths.sum()),
      'steps': num_steps.get(name, int(length_P.sum())),
      'ms': 1e3 * seconds,
      'x': timings.seconds['one_by_one'] / seconds,
    }


def _rows(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
  """Returns the rows of what is asked for, or raises ValueError."""
  if args.run is not None:
    config, variables = read_trained(args.run)
    text = pathlib.Path(args.text).read_bytes()
    text = text[len(text) // 2 :][: args.bytes]
    data = dataclasses.replace(config.data, sequence_length=len(text) + 1)
    of_model = dataclasses.replace(config.model, dtype='float32')
    config = dataclasses.replace(config, data=data, model=of_model)
    codes = inference.TrainedPyramid(config, variables).encode(text, level=0)
    model = make_model(config, jax.default_backend())
    return decode(model, variables, codes.codes_N, args.repeats)
  settings = args.set if args.config else [*_SIZE, *args.set]
  config = config_file.load(args.config or _CONFIG, settings)
  if (count := len(config.model.levels)) > 1:
    raise ValueError(f'--config: got {count} levels, allowed: 1')
  model = make_model(config, jax.default_backend())
  if args.what == 'continue':
    return continue_prompts(model, args.batches, args.contexts, args.num_calls)
  if (dtype := config.model.dtype) != 'float32':
    raise ValueError(f'model.dtype: got {dtype!r}, allowed: float32')
  (level,) = config.model.levels
  codes_N = np.random.default_rng(0).integers(
    level.quantizer.num_codes,
    size=level.pooling.num_queries * (args.bytes // _SEGMENT_BYTES),
  )
  return decode(model, random_variables(model), codes_N, args.repeats)


def main(argv: Sequence[str]) -> None:
  """Prints a table."""
  parser = timing.make_parser('generation', __doc__)
  parser.add_argument('what', choices=('continue', 'decode'))
  parser.add_argument('--config', help='file of configs/, of one level')
  config_file.add_overrides(parser)
  parser.add_argument('--run', help='directory of a run')
  parser.add_argument('--text', help='decode: file, read from its middle on')
  number = functools.partial(parser.add_argument, type=timing.positive)
  number('--contexts', nargs='+', default=[128, 256, 512, 2048, 4096])
  number('--batches', nargs='+', default=[1, 16])
  number('--num_calls', default=16, help='continue: calls of 16 segments')
  number('--bytes', default=4096, help='decode: about as many')
  number('--repeats', default=5, help='decode: calls of each way')
  args = parser.parse_args(argv)
  is_text = args.text is not None
  if is_text != (args.run is not None) or (is_text and args.what != 'decode'):
    parser.error('--run and --text: allowed: both, to decode')
  report = timing.Report(parser.prog, argv, args.json)
  try:
    report.add(list(_rows(args)))
  except (OSError, ValueError) as error:
    parser.error(str(error))


if __name__ == '__main__':
  allocator.keep_memory()
  main(sys.argv[1:])
