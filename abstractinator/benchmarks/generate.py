r"""How fast texts are continued: with caches, and computed anew for each byte.

    python -m abstractinator.benchmarks.generate
    python -m abstractinator.benchmarks.generate --contexts 128 --num_calls 2
    python -m abstractinator.benchmarks.generate --config regular_pallas \
      --contexts 512 --batches 1 16 256

One level of random weights without a top LM, of the size at which the PyTorch
original was timed: 64 wide, 2 + 2 + 2 layers, 512 codes. Its figures on CPU, in
ms of CPU time a byte, stand beside those of one row. Bytes and ends of segments
are drawn, at a temperature of 1: the likeliest end of such weights is the first
byte, and so many segments of one byte are the cheapest of all. Codes of a top
LM are its likeliest, and it ends no text. Reading the prompt is timed apart;
"anew" is one whole call, of which the original needs several.
Contexts of the expander: 'segment' decodes segments side by side, 'window' byte
after byte. `--config` takes another model of one level, with its top LM if it
has one. The roofline of a row is the time to read the parameters that its bytes
need at least: the top LM once a segment, the expander once a byte, or where
segments are decoded side by side, once for the bytes at one place in all of a
call.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import platform
import time

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks import named_configs, timing, turns
from abstractinator.benchmarks.baseline import LEVEL
from abstractinator.config import ImplementationConfig, ModelConfig
from abstractinator.decoding import continue_texts
from abstractinator.decoding.options import Options
from abstractinator.decoding.pyramid import AbstractinatorPyramid, make_model
from abstractinator.ops.implementation import resolve_implementations
from abstractinator.types import NUM_BYTES, PAD_ID, Batch, PyTree

_ORIGINAL_MS = {128: 28.0, 512: 78.0, 2048: 1332.0}
_LONGEST = 1 << 16
_AUTO = ImplementationConfig.everywhere('auto')


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--expanders',
    nargs='+',
    default=['segment', 'window'],
    help='contexts of that level, not read with --config',
  )
  add_model(parser)
  parser.add_argument(
    '--contexts', type=int, nargs='+', default=[128, 256, 512, 2048, 4096]
  )
  parser.add_argument('--batches', type=int, nargs='+', default=[1, 16])
  parser.add_argument(
    '--num_calls', type=int, default=16, help='timed, of 16 segments a row each'
  )
  args = parser.parse_args()
  print(
    f'{platform.machine()}, {os.cpu_count()} cores,'
    f' {jax.devices()[0].device_kind}, jax {jax.__version__}',
    end='\n\n',
  )
  print(
    '| expander | rows | context | bytes/s | CPU-ms/byte | anew, CPU-ms/byte'
    ' | original / ours | prompt, CPU-ms | bytes/segment | programs'
    ' | of roofline |'
  )
  print('|---|---|---|---|---|---|---|---|---|---|---|', flush=True)
  models = {}
  for name in [args.config] if args.config else args.expanders:
    model = chosen_model(parser, args) or make_level(name)
    models[name] = model, _endless(make_variables(model))
  cases = list(itertools.product(models, args.batches, args.contexts))
  counts = [_compile(*models[name], *case) for name, *case in cases]
  turns.take()
  for (name, *case), count in zip(cases, counts, strict=True):
    line = _line(*models[name], *case, args.num_calls, count)
    print(f'| {name} | {line} |', flush=True)


def _compile(model, variables, rows, context) -> int:
  """Runs once what is timed; counts programs compiled to go on with texts."""
  before = _programs()
  _cached(model, variables, context, rows, num_calls=1, repeats=1)
  _anew(model, variables, context, rows, repeats=1)
  return _programs() - before


def _line(model, variables, rows, context, num_calls, count):
  wall, cpu, prompt, length = _cached(
    model, variables, context, rows, num_calls
  )
  anew = _anew(model, variables, context, rows)
  is_its_size = model.config.top_lm is None and rows == 1
  original = _ORIGINAL_MS.get(context) if is_its_size else None
  of_original = '' if original is None else f'{original / cpu:.0f}'
  return (
    f'{rows} | {context} | {1000 / wall:.0f} | {cpu:.3f} | {anew:.2f}'
    f' | {of_original} | {prompt:.1f} | {length:.1f} | {count}'
    f' | {_reading_ms(model, variables, length) / (rows * wall):.2%}'
  )


def _reading_ms(model, variables, length) -> float:
  """Time to read what a byte needs, in the type that is computed in.

  Args:
    model: Of one level.
    variables: Its.
    length: Bytes of a segment.

  Returns:
    Milliseconds.
  """
  (level,), params = model.config.levels, variables['params']
  count = _size(params['expander'])
  if level.expander.context == 'segment':
    count /= continue_texts.SLOTS
  # A step of the top LM makes a code.
  codes = level.pooling.num_queries / length
  count += _size(params.get('top_lm', {})) * codes
  return 1000 * count * jnp.dtype(model.dtype).itemsize / timing.copy_rate()


def _size(params) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def _programs() -> int:
  return (
    continue_texts.start_program._cache_size()
    + continue_texts.extend_program._cache_size()
  )


def _cached(model, variables, context, rows, num_calls, repeats=5):
  """Times in ms, and bytes of a segment.

  Returns:
    Wall and CPU time of a new byte, CPU time of a prompt, and the bytes.
  """
  options = Options(temperature=0.0, level_temperature=1.0)
  bucket = continue_texts.bucket_of(rows, context, options)
  ids_BS = np.zeros((bucket.rows, bucket.size), np.int32)
  ids_BS[:, :context] = _prompts(bucket.rows, context)
  count_B = np.full(bucket.rows, context, np.int32)
  none_B = np.zeros(bucket.rows, bool)
  request = continue_texts.request_of(options, np.arange(bucket.rows))
  # Nothing but the number of calls ends a text: random weights end it anywhere.
  request = request.replace(limit_B=np.full(bucket.rows, 1 << 30, np.int32))

  def clock():
    began = time.process_time()
    state = jax.block_until_ready(
      continue_texts.start_program(
        variables, ids_BS, count_B, request, model=model, bucket=bucket
      )
    )
    prompt = (time.process_time() - began) / bucket.rows
    wall, cpu, made = time.perf_counter(), time.process_time(), 0
    for _ in range(num_calls):
      state = state.replace(is_done_B=none_B)
      _, new_B, state = continue_texts.extend_program(
        variables, state, none_B, model=model, entropy_model_only=False
      )
      made += int(np.asarray(new_B).sum())
    if made == 0:
      raise RuntimeError('no byte was made')
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    slots = int(np.asarray(state.levels[0].slot_B - first_B).sum())
    return 1000 * wall / made, 1000 * cpu / made, 1000 * prompt, made / slots

  first_B = np.asarray(
    continue_texts.start_program(
      variables, ids_BS, count_B, request, model=model, bucket=bucket
    )
    .levels[0]
    .slot_B
  )
  clock()
  return tuple(map(min, zip(*(clock() for _ in range(repeats)), strict=True)))


def _prompts(rows: int, context: int) -> np.ndarray:
  """The ends of the same texts, so that all contexts are continued alike."""
  rng = np.random.default_rng(0)
  size = max(context, _LONGEST)
  return rng.integers(32, 127, (rows, size))[:, -context:].astype(np.int32)


def _anew(model, variables, context, rows, repeats=3):
  """CPU time of a byte that a whole call predicts, ms, a row's share of it."""
  ids_BS = _prompts(rows, context)
  document_BS = np.zeros_like(ids_BS)

  call = functools.partial(_whole_call, variables, model=model)
  jax.block_until_ready(call(ids_BS, document_BS))
  timings = []
  for _ in range(repeats):
    start = time.process_time()
    jax.block_until_ready(call(ids_BS, document_BS))
    timings.append(time.process_time() - start)
  return 1000 * min(timings) / rows


@functools.partial(jax.jit, static_argnames='model')
def _whole_call(variables, ids_BS, document_BS, *, model):
  batch = Batch(ids_BS, document_BS, ids_BS[:, 0])
  output = model.apply(variables, batch)
  return output.levels[0].expanded.best_BS[:, -1]


def make_level(context: str) -> AbstractinatorPyramid:
  """The level that is timed, by what its expander sees."""
  stack = dataclasses.replace(LEVEL.entropy_model, ffn_dim=256)
  expander = dataclasses.replace(
    LEVEL.expander, num_layers=2, ffn_dim=256, context=context
  )
  level = dataclasses.replace(
    LEVEL, d_model=64, entropy_model=stack, encoder=stack, expander=expander
  )
  return AbstractinatorPyramid(
    ModelConfig((level,), None, dtype='float32', implementation=_AUTO),
    num_ids=NUM_BYTES,
    implementation=resolve_implementations(
      **_AUTO.to_dict(), platform=jax.default_backend()
    ),
    dtype=jnp.float32,
  )


def add_model(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of `chosen_model`."""
  parser.add_argument('--config', help='of configs/, instead of that level')
  named_configs.add_settings(parser, about='of that config')


def chosen_model(
  parser: argparse.ArgumentParser, args: argparse.Namespace
) -> AbstractinatorPyramid | None:
  """The model of a config, of one level, if one is given."""
  if args.config is None:
    if args.set:
      parser.error('--set: got a setting without --config')
    return None
  try:
    config = named_configs.load(args.config, args.set)
  except ValueError as error:
    parser.error(str(error))
  if (count := len(config.model.levels)) > 1:
    parser.error(f'--config: got {args.config!r} of {count} levels, allowed: 1')
  return make_model(config, jax.default_backend())


def make_variables(model: AbstractinatorPyramid) -> PyTree:
  """Random ones."""
  ids_BS = jnp.full((1, 64), PAD_ID, jnp.int32)
  batch = Batch(ids_BS, ids_BS * 0, ids_BS[:, 0])
  return jax.jit(model.init)(jax.random.key(0), batch)


def _endless(variables: PyTree) -> PyTree:
  """With a top LM that ends no text where it does what is likelier.

  It ends one at odds above 1, and gives 1.
  """
  flat = flax.traverse_util.flatten_dict(variables)
  path = ('params', 'top_lm', 'end_head', 'kernel')
  if path in flat:
    flat[path] = jnp.zeros_like(flat[path])
  return flax.traverse_util.unflatten_dict(flat)


if __name__ == '__main__':
  main()
