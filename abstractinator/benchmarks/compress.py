"""Held-out text made smaller: by a run, and by programs that know no text.

    python -m abstractinator.benchmarks.compress RUN

The documents that a run held out are one file, as `abstractinator compress`
takes it; what it writes is read back and compared. The parameters of the run
are not counted: they are needed on both sides.
"""

import argparse
import bz2
import gzip
import lzma
import math
import shutil
import subprocess
import time
from collections.abc import Callable

import jax

from abstractinator import byte_vocab
from abstractinator.benchmarks.table import markdown
from abstractinator.compression import codec, hierarchy_codec
from abstractinator.compression.byte_model import ByteModel
from abstractinator.compression.hierarchy_model import (
  HierarchyModel,
  unsupported,
)
from abstractinator.config import RunConfig
from abstractinator.data.pipeline import open_data
from abstractinator.evaluation.evaluator import Evaluator, open_run
from abstractinator.evaluation.texts_bits import texts_bits
from abstractinator.evaluation.windows import Passage

_PROGRAMS: dict[str, Callable[[bytes], bytes]] = {
  '`gzip -9`': lambda data: gzip.compress(data, 9),
  '`bzip2 -9`': lambda data: bz2.compress(data, 9),
  '`xz -9e`': lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdir')
  parser.add_argument('--step', type=int, help='checkpoint, the latest')
  parser.add_argument(
    '--max_bytes', type=int, default=1 << 20, help='of the text (%(default)s)'
  )
  parser.add_argument('--lanes', type=int, help='see `abstractinator compress`')
  args = parser.parse_args()
  evaluator = open_run(args.workdir, args.step)
  data = held_out_text(evaluator.config, args.max_bytes)
  print(f'{len(data):,} bytes, jax {jax.__version__}', end='\n\n')
  print(markdown(rows(evaluator, data, args.lanes)))


def held_out_text(config: RunConfig, max_bytes: int) -> bytes:
  """Held-out documents, one after the other, as many as fit."""
  _, held_out = open_data(config.data, max_documents=1)
  documents, parts, size = held_out.documents, [], 0
  documents.require_bytes()
  for index in range(documents.num_documents):
    parts.append(documents.read(index, 0, int(documents.lengths[index])))
    size += len(parts[-1])
    if size >= max_bytes:
      break
  return b''.join(parts)[:max_bytes]


def rows(
  evaluator: Evaluator, data: bytes, lanes: int | None = None
) -> list[dict[str, object]]:
  """Compresses a text in every way.

  Args:
    evaluator: Of the run.
    data: The text.
    lanes: See `codec.compress`.

  Returns:
    A row for each.

  Raises:
    ValueError: If what `compress` wrote reads as another text.
  """
  found = []
  for name, program in programs().items():
    since = time.process_time()
    found.append(_row(name, data, len(program(data)), since))
  run = evaluator.config, evaluator.variables
  models = {'`abstractinator compress`': (codec, ByteModel(*run), (lanes,))}
  if unsupported(evaluator.config) is None:
    name = '`abstractinator compress --model hierarchy`'
    models[name] = (hierarchy_codec, HierarchyModel(*run), ())
  for name, (how, model, options) in models.items():
    since = time.process_time()
    content = how.compress(model, data, *options)
    found.append(_row(name, data, len(content), since))
    if how.decompress(model, content) != data:
      raise ValueError(f'{name}: what was compressed reads as another text')
  since = time.process_time()
  passage = Passage(byte_vocab.encode(data))
  kinds = {'entropy model (likelihood)': True}
  if evaluator.has_codes:
    kinds['codes, ends and bytes of segments (bound)'] = False
  for name, is_entropy in kinds.items():
    (cost,) = texts_bits(evaluator, [passage], entropy_model_only=is_entropy)
    found.append(_row(name, data, math.ceil(cost.bits / 8), since))
    since = time.process_time()
  return found


def programs() -> dict[str, Callable[[bytes], bytes]]:
  """Those of Python, and `zstd` where there is one."""
  zstd = shutil.which('zstd')
  if zstd is None:
    return _PROGRAMS
  command = [zstd, '--ultra', '-22', '-c', '-q']
  return _PROGRAMS | {
    '`zstd --ultra -22`': lambda data: (
      subprocess.run(
        command, input=data, stdout=subprocess.PIPE, check=True
      ).stdout
    )
  }


def _row(name: str, data: bytes, size: int, since: float) -> dict[str, object]:
  return {
    'by': name,
    'bytes': size,
    'bits/byte': 8 * size / len(data),
    'of the text': f'{size / len(data):.1%}',
    'CPU-s': time.process_time() - since,
  }


if __name__ == '__main__':
  main()
