"""Size of held-out text: compressed by a run, and by programs without a model.

    python -m abstractinator.benchmarks.compress RUN

The documents that a run held out are one file, as `abstractinator compress`
takes it; what it writes is read back and compared. The parameters of the run
are not counted: they are needed on both sides.
"""

import bz2
import gzip
import lzma
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from abstractinator import types
from abstractinator.benchmarks import timing
from abstractinator.compression import codec
from abstractinator.compression.byte_model import ByteModel
from abstractinator.compression.hierarchy_model import (
  HierarchyModel,
  unsupported,
)
from abstractinator.config import RunConfig
from abstractinator.data.pipeline import open_data
from abstractinator.evaluation.evaluate import texts_bits
from abstractinator.evaluation.evaluator import Evaluator, open_run
from abstractinator.evaluation.windows import Passage


def programs() -> dict[str, Callable[[bytes], bytes]]:
  """Returns the compressors of Python, and `zstd` if it is installed."""
  extreme = 9 | lzma.PRESET_EXTREME
  found: dict[str, Callable[[bytes], bytes]] = {
    '`gzip -9`': lambda data: gzip.compress(data, 9),
    '`bzip2 -9`': lambda data: bz2.compress(data, 9),
    '`xz -9e`': lambda data: lzma.compress(data, preset=extreme),
  }
  if shutil.which('zstd'):
    found['`zstd --ultra -22`'] = lambda data: subprocess.check_output(
      ['zstd', '--ultra', '-22', '-c', '-q'], input=data
    )
  return found


def held_out_text(config: RunConfig, max_bytes: int) -> bytes:
  """Returns the beginning of the held-out documents, one after the other."""
  _, held_out = open_data(config.data, max_documents=1)
  documents, text = held_out.documents, b''
  documents.require_bytes()
  for document in documents:
    text += document.read_bytes()
    if len(text) >= max_bytes:
      break
  return text[:max_bytes]


def rows(
  evaluator: Evaluator, data: bytes, lanes: int | None = None
) -> list[dict[str, object]]:
  """Compresses a text in every way.

  Args:
    evaluator: Evaluator of the run.
    data: The text.
    lanes: Argument of `codec.compress`.

  Returns:
    A row for each way.

  Raises:
    ValueError: If a compressed file of ours reads as another text.
  """
  found: list[dict[str, object]] = []

  def add(name: str, size: Callable[..., float], *args: Any) -> None:
    since = time.process_time()
    num_bytes = math.ceil(size(*args))
    row = {'by': name, 'bytes': num_bytes}
    row |= {'bits/byte': 8 * num_bytes / len(data)}
    row |= {'of the text': f'{num_bytes / len(data):.1%}'}
    found.append(row | {'CPU-s': time.process_time() - since})

  contents = []

  def file_size(model: ByteModel | HierarchyModel, lanes: int | None) -> int:
    contents.append((model, codec.compress(model, data, lanes)))
    return len(contents[-1][1])

  def bound(is_entropy: bool) -> float:
    passage = Passage(types.bytes_to_ids(data))
    (cost,) = texts_bits(evaluator, [passage], entropy_model_only=is_entropy)
    return cost.bits / 8

  for name, program in programs().items():
    add(name, lambda program: len(program(data)), program)
  run = evaluator.config, evaluator.variables
  add('`abstractinator compress`', file_size, ByteModel(*run), lanes)
  if unsupported(evaluator.config) is None:
    name = '`abstractinator compress --model hierarchy`'
    add(name, file_size, HierarchyModel(*run), None)
  add('entropy model (likelihood)', bound, True)
  if evaluator.has_codes:
    add('codes, ends and bytes of segments (bound)', bound, False)
  for model, content in contents:
    if codec.decompress(model, content) != data:
      raise ValueError(f'{model.kind}: the file reads as another text')
  return found


def main(argv: Sequence[str]) -> None:
  """Prints a table."""
  parser = timing.make_parser('compress', __doc__)
  parser.add_argument('workdir')
  parser.add_argument('--step', type=int, help='checkpoint, the latest')
  parser.add_argument('--max_bytes', type=timing.positive, default=1 << 20)
  parser.add_argument('--lanes', type=timing.positive)
  args = parser.parse_args(argv)
  report = timing.Report(parser.prog, argv, args.json)
  evaluator = open_run(args.workdir, args.step)
  data = held_out_text(evaluator.config, args.max_bytes)
  print(f'{len(data):,} bytes')
  report.add(rows(evaluator, data, args.lanes))


if __name__ == '__main__':
  main(sys.argv[1:])
