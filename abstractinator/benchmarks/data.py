"""The input pipeline alone, next to the bytes that a training step takes.

    python -m abstractinator.benchmarks.data

The standard library is written in every format, in a directory of its own, and
read as a run reads it, without a model; then steps of a config are timed. Each
is timed by the clock, one after the other: what else runs slows all of them.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from abstractinator import huge_pages
from abstractinator.benchmarks import named_configs
from abstractinator.benchmarks.table import markdown
from abstractinator.byte_vocab import NUM_BYTES
from abstractinator.config import RunConfig
from abstractinator.data import pipeline
from abstractinator.data.documents import Documents
from abstractinator.data.packing import PackedRows
from abstractinator.data.sources import find_documents, standard_library
from abstractinator.training.program import make_program
from abstractinator.types import Batch

_WARMUP_STEPS = 2
_WARMUP_BATCHES = 20


def write_files(texts: Sequence[bytes], root: pathlib.Path) -> str:
  """A file a text; returns the glob, as the others do."""
  for number, text in enumerate(texts):
    (root / f'{number}.txt').write_bytes(text)
  return f'{root}/*.txt'


def write_jsonl(texts: Sequence[bytes], root: pathlib.Path) -> str:
  """A line a text."""
  lines = [json.dumps({'text': text.decode('latin-1')}) for text in texts]
  (root / 'all.jsonl').write_text('\n'.join(lines))
  return f'{root}/all.jsonl'


def write_parquet(texts: Sequence[bytes], root: pathlib.Path) -> str:
  """A row a text."""
  import pyarrow
  from pyarrow import parquet

  table = pyarrow.table({'text': list(texts)})
  parquet.write_table(table, root / 'all.parquet', row_group_size=64)
  return f'{root}/all.parquet'


def write_array_record(texts: Sequence[bytes], root: pathlib.Path) -> str:
  """A record a text."""
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(root / 'all.arrayrecord'), 'group_size:1')
  for text in texts:
    writer.write(text)
  writer.close()
  return f'{root}/all.arrayrecord'


def write_arrays(texts: Sequence[bytes], root: pathlib.Path) -> str:
  """An array a text."""
  for number, text in enumerate(texts):
    np.save(root / f'{number}.npy', np.frombuffer(text, np.uint8))
  return f'{root}/*.npy'


FORMATS: dict[str, Callable[[Sequence[bytes], pathlib.Path], str]] = {
  'files': write_files,
  'jsonl': write_jsonl,
  'parquet': write_parquet,
  'arrayrecord': write_array_record,
  'npy': write_arrays,
}


@dataclasses.dataclass(frozen=True)
class Measurement:
  """How fast a format is read; the JSON line of `--json`.

  Attributes:
    format: Key of `FORMATS`.
    num_documents: How many there are.
    open_seconds: To find them.
    bytes_per_second: Of batches, without EOS and padding.
    of_step: By how many times that is more than a step takes.
  """

  format: str
  num_documents: int
  open_seconds: float
  bytes_per_second: float
  of_step: float


def _batches(config: RunConfig, documents: Documents):
  data, size = config.data, config.data.sequence_length
  rows = PackedRows(
    documents,
    sequence_length=size,
    max_documents=config.model.max_documents(size),
  )
  return pipeline.TrainIterator(
    rows,
    seed=config.seed,
    batch_size=data.batch_size,
    shard_index=0,
    shard_count=1,
    read_threads=data.read_threads,
    prefetch_batches=data.prefetch_batches,
  )


def _num_bytes(batch: Batch) -> int:
  return int(np.count_nonzero(batch.ids_BS < NUM_BYTES))


def pipeline_speed(
  config: RunConfig, documents: Documents, seconds: float
) -> float:
  """Bytes a second of batches that nobody waits for."""
  batches = _batches(config, documents)
  for _ in range(_WARMUP_BATCHES):
    next(batches)
  num_bytes, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    num_bytes += _num_bytes(next(batches))
  return num_bytes / (time.perf_counter() - start)


def step_speed(
  config: RunConfig, documents: Documents, num_steps: int
) -> float:
  """Bytes a second that training steps take, on one device."""
  batches = _batches(config, documents)
  program = make_program(config, jax.default_backend(), total_steps=10**6)
  state = jax.jit(program.init)(jax.random.key(0))
  step = jax.jit(program.step, donate_argnums=0)
  num_bytes, start = 0, 0.0
  for number in range(_WARMUP_STEPS + num_steps):
    if number == _WARMUP_STEPS:
      jax.block_until_ready(state)
      num_bytes, start = 0, time.perf_counter()
    batch = next(batches)
    num_bytes += _num_bytes(batch)
    state, _ = step(state, batch)
  jax.block_until_ready(state)
  return num_bytes / (time.perf_counter() - start)


def measure(
  config: RunConfig, formats: Sequence[str], seconds: float, step: float
) -> list[Measurement]:
  """Writes the corpus in each format and reads it.

  Args:
    config: Sizes of batches.
    formats: Keys of `FORMATS`.
    seconds: To read each for.
    step: Bytes a second that a step takes.

  Returns:
    A measurement a format.
  """
  source = standard_library()
  texts = [source.read(i, 0, int(n)) for i, n in enumerate(source.lengths)]
  found = []
  for name in formats:
    with tempfile.TemporaryDirectory() as root:
      globs = FORMATS[name](texts, pathlib.Path(root))
      start = time.perf_counter()
      documents = find_documents(globs)
      opened = time.perf_counter() - start
      speed = pipeline_speed(config, documents, seconds)
    found.append(
      Measurement(name, documents.num_documents, opened, speed, speed / step)
    )
  return found


def table(measurements: Sequence[Measurement], step: float) -> str:
  """What to print."""
  rows = [
    {
      'format': m.format,
      'documents': m.num_documents,
      'open s': m.open_seconds,
      'MB/s': m.bytes_per_second / 1e6,
      'times a step': m.of_step,
    }
    for m in measurements
  ]
  return f'{markdown(rows)}\n\na step takes {step / 1e6:.4f} MB/s'


def main(argv: Sequence[str] | None = None) -> None:
  """Measures and prints the table."""
  parser = argparse.ArgumentParser(
    prog='python -m abstractinator.benchmarks.data',
    description='Speed of the input pipeline.',
  )
  parser.add_argument(
    '--config', default='default', choices=named_configs.names()
  )
  parser.add_argument('--formats', default=','.join(FORMATS))
  parser.add_argument('--seconds', type=float, default=3.0, help='a format')
  parser.add_argument('--steps', type=int, default=8, help='timed')
  parser.add_argument('--json', metavar='FILE', help='append JSON lines to it')
  args = parser.parse_args(argv)
  formats = args.formats.split(',')
  for name in formats:
    if name not in FORMATS:
      parser.error(f'--formats: got {name!r}, allowed: {", ".join(FORMATS)}')
  config = named_configs.load(args.config)
  step = step_speed(config, standard_library(), args.steps)
  measurements = measure(config, formats, args.seconds, step)
  print(table(measurements, step))
  if args.json:
    with open(args.json, 'a') as file:
      for measurement in measurements:
        file.write(json.dumps(dataclasses.asdict(measurement)) + '\n')


if __name__ == '__main__':
  huge_pages.ensure()
  main()
