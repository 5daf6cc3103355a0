"""How fast texts are continued: with caches, and computed anew for each byte.

    python -m abstractinator.benchmarks.generate

One level of random weights, greedy, without a top LM, of the size at which the
PyTorch original was timed: 64 wide, 2 + 2 + 2 layers, 512 codes. Its figures on
CPU, in ms of CPU time a byte, stand beside those of one row.
"""

import argparse
import dataclasses
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.benchmarks.baseline import LEVEL
from abstractinator.byte_vocab import NUM_BYTES, PAD_ID
from abstractinator.config import ImplementationConfig, ModelConfig
from abstractinator.generation import programs
from abstractinator.generation.options import Options
from abstractinator.modules.pyramid import AbstractinatorPyramid
from abstractinator.ops.implementation import resolve_implementations
from abstractinator.types import Batch

_ORIGINAL_MS = {128: 28.0, 512: 78.0, 2048: 1332.0}
_AUTO = ImplementationConfig.everywhere('auto')


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--contexts', type=int, nargs='+', default=[128, 256, 512, 2048, 4096]
  )
  parser.add_argument('--batches', type=int, nargs='+', default=[1, 16])
  parser.add_argument('--new_bytes', type=int, default=256)
  args = parser.parse_args()
  model = _make_model()
  variables = _make_variables(model)
  print(
    f'{platform.machine()}, {os.cpu_count()} cores,'
    f' {jax.devices()[0].device_kind}, jax {jax.__version__}',
    end='\n\n',
  )
  print(
    '| context | rows | bytes/s | CPU-ms/byte | anew, CPU-ms/byte | original'
    ' | compilations |'
  )
  print('|---|---|---|---|---|---|---|')
  for rows in args.batches:
    for context in args.contexts:
      print(_line(model, variables, context, rows, args.new_bytes), flush=True)


def _line(model, variables, context, rows, new_bytes):
  before = _programs()
  wall, cpu = _cached(model, variables, context, rows, new_bytes)
  count = _programs() - before
  anew = _anew(model, variables, context, rows)
  original = _ORIGINAL_MS.get(context) if rows == 1 else None
  of_original = '' if original is None else f'{original / cpu:.0f} x'
  return (
    f'| {context} | {rows} | {1000 / wall:.0f} | {cpu:.3f} | {anew:.2f}'
    f' | {of_original} | {count} |'
  )


def _programs() -> int:
  return programs.start._cache_size() + programs.extend._cache_size()


def _cached(model, variables, context, rows, new_bytes):
  """Wall and CPU time of a new byte, ms, without that of the prompts."""
  rng = np.random.default_rng(0)
  prompts = [
    rng.integers(32, 127, context, dtype=np.uint8).tobytes()
    for _ in range(rows)
  ]

  options = Options(max_new_bytes=new_bytes)
  bucket = programs.bucket_of(rows, context, options)
  ids_BS = np.zeros((bucket.rows, bucket.size), np.int32)
  for row, prompt in enumerate(prompts):
    ids_BS[row, :context] = np.frombuffer(prompt, np.uint8)
  count_B = np.full(bucket.rows, context, np.int32)
  request = programs.request_of(options, np.zeros(bucket.rows, np.int32))
  stopped_B = np.zeros(bucket.rows, bool)

  def clock():
    state = programs.start(
      variables, ids_BS, count_B, request, model=model, bucket=bucket
    )
    jax.block_until_ready(state)
    wall, cpu, made = time.perf_counter(), time.process_time(), 0
    while not np.asarray(state.is_done_B).all():
      _, new_B, state = programs.extend(
        variables, state, stopped_B, model=model, entropy_model_only=False
      )
      made += int(np.asarray(new_B).sum())
    return (
      (time.perf_counter() - wall) / made,
      (time.process_time() - cpu) / made,
    )

  clock()
  timings = [clock() for _ in range(5)]
  return tuple(1000 * min(x) for x in zip(*timings, strict=True))


def _anew(model, variables, context, rows, repeats=3):
  """CPU time of a byte that a whole call predicts, ms, a row's share of it."""
  ids_BS = np.random.default_rng(0).integers(32, 127, (rows, context))
  ids_BS = ids_BS.astype(np.int32)
  document_BS = np.zeros_like(ids_BS)

  @jax.jit
  def call(variables, ids_BS, document_BS):
    batch = Batch(ids_BS, document_BS, ids_BS[:, 0])
    output = model.apply(variables, batch)
    return output.levels[0].expanded.best_BS[:, -1]

  jax.block_until_ready(call(variables, ids_BS, document_BS))
  timings = []
  for _ in range(repeats):
    start = time.process_time()
    jax.block_until_ready(call(variables, ids_BS, document_BS))
    timings.append(time.process_time() - start)
  return 1000 * min(timings) / rows


def _make_model():
  stack = dataclasses.replace(LEVEL.entropy_model, ffn_dim=256)
  expander = dataclasses.replace(LEVEL.expander, num_layers=2, ffn_dim=256)
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


def _make_variables(model):
  ids_BS = jnp.full((1, 64), PAD_ID, jnp.int32)
  batch = Batch(ids_BS, ids_BS * 0, ids_BS[:, 0])
  return jax.jit(model.init)(jax.random.key(0), batch)


if __name__ == '__main__':
  main()
