"""Reading speed of every format, next to the bytes that a training step takes.

    python -m abstractinator.benchmarks.data

The standard library is written in every format, in a directory of its own, and
read as a run reads it, without a model; then steps of a config are timed. Each
is timed by the clock, one after the other: other work slows all of them.
"""

import json
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from abstractinator.benchmarks import timing
from abstractinator.benchmarks.step import compile_step
from abstractinator.cli import config_file
from abstractinator.config import RunConfig
from abstractinator.data.documents import Documents
from abstractinator.data.packing import PackedRows
from abstractinator.data.pipeline import BatchOrder, TrainIterator
from abstractinator.data.sources import find_documents, standard_library
from abstractinator.runs import allocator
from abstractinator.types import NUM_BYTES

FORMATS = ('txt', 'jsonl', 'parquet', 'arrayrecord', 'npy')
_WARMUP_BATCHES = 20


def write(suffix: str, texts: Sequence[bytes], root: pathlib.Path) -> str:
  """Writes documents in a format; returns the glob of the files.

  Args:
    suffix: One of `FORMATS`: a text file or an array for each document; or a
      line of JSON, a row of Parquet or an ArrayRecord, all in one file.
    texts: The documents.
    root: An empty directory.
  """
  path = root / f'all.{suffix}'
  if suffix == 'jsonl':
    decoded = (text.decode(errors='replace') for text in texts)
    path.write_text('\n'.join(json.dumps({'text': x}) for x in decoded))
  elif suffix == 'parquet':
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({'text': list(texts)})
    parquet.write_table(table, path, row_group_size=64)
  elif suffix == 'arrayrecord':
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for text in texts:
      writer.write(text)
    writer.close()
  else:
    for number, text in enumerate(texts):
      path = root / f'{number}.{suffix}'
      if suffix == 'txt':
        path.write_bytes(text)
      else:
        np.save(path, np.frombuffer(text, np.uint8))
  return f'{root}/*.{suffix}'


def read_speed(
  config: RunConfig, documents: Documents, seconds: float
) -> float:
  """Measures how fast the batches of a run are read when nothing uses them.

  Args:
    config: The run.
    documents: Documents to read.
    seconds: Time to read for.

  Returns:
    Bytes per second, without EOS and padding.
  """
  data = config.data
  rows = PackedRows(
    [documents],
    sequence_length=data.sequence_length,
    max_documents=config.model.max_documents(data.sequence_length),
  )
  batches = TrainIterator(
    rows,
    BatchOrder(config.seed, data.batch_size),
    read_threads=data.read_threads,
    prefetch_batches=data.prefetch_batches,
  )
  for _ in range(_WARMUP_BATCHES):
    next(batches)
  num_bytes, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    num_bytes += int(np.count_nonzero(next(batches).ids_BS < NUM_BYTES))
  return num_bytes / (time.perf_counter() - start)


def main(argv: Sequence[str]) -> None:
  """Prints a table of formats."""
  parser = timing.make_parser('data', __doc__)
  parser.add_argument('--config', default='default')
  parser.add_argument('--formats', nargs='+', choices=FORMATS, default=FORMATS)
  parser.add_argument('--seconds', type=float, default=3.0, help='a format')
  parser.add_argument('--steps', type=timing.positive, default=8, help='timed')
  args = parser.parse_args(argv)
  config = config_file.load(args.config)
  report = timing.Report(parser.prog, argv, args.json)
  step = compile_step(args.config, config)
  timing.seconds(step.take)
  step_seconds = timing.seconds(step.take, queued=args.steps)
  step_speed = math.prod(step.shape) / step_seconds
  source = standard_library()
  texts = [document.read_bytes() for document in source]
  rows: list[dict[str, object]] = []
  for name in args.formats:
    with tempfile.TemporaryDirectory() as root:
      glob = write(name, texts, pathlib.Path(root))
      start = time.perf_counter()
      documents = find_documents(glob)
      row = {'format': name, 'documents': len(documents)}
      row |= {'open s': time.perf_counter() - start}
      speed = read_speed(config, documents, args.seconds)
    rows.append(row | {'MB/s': speed / 1e6, 'times a step': speed / step_speed})
  report.add(rows)
  print(f'\na step takes {step_speed / 1e6:.4f} MB/s')


if __name__ == '__main__':
  allocator.keep_memory()
  main(sys.argv[1:])
