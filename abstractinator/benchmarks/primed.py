"""Held-out text, compressed by programs that have read the training text.

    python -m abstractinator.benchmarks.primed [CONFIG] [--set data.train=GLOBS]

A program compresses the training text alone, and then with the held-out text
behind it; the difference is what the held-out text costs. So a program has seen
what a model has learned from. PPMd needs `pip install abstractinator[ppmd]`.
"""

import importlib.util
import lzma
import sys
from collections.abc import Callable, Sequence

from abstractinator.benchmarks import timing
from abstractinator.cli import config_file
from abstractinator.cli.evaluate import open_documents
from abstractinator.config import DataConfig
from abstractinator.data.documents import Documents
from abstractinator.data.pipeline import open_data

# Reach of the largest preset of xz: text further back is of no use to it.
_MAX_BYTES = 64 << 20
_PPMD_ORDERS = (6, 8)
_PPMD_MEMORY = 1 << 30


def programs() -> dict[str, Callable[[bytes], int]]:
  """Returns functions from a text to its compressed size in bytes, by name."""
  extreme = 9 | lzma.PRESET_EXTREME
  found: dict[str, Callable[[bytes], int]] = {
    'xz -9e': lambda text: len(lzma.compress(text, preset=extreme))
  }
  if importlib.util.find_spec('pyppmd') is None:
    print('no PPMd: pip install abstractinator[ppmd]', file=sys.stderr)
    return found
  import pyppmd

  def ppmd(order: int) -> Callable[[bytes], int]:
    return lambda text: len(
      pyppmd.compress(text, max_order=order, mem_size=_PPMD_MEMORY)
    )

  return found | {f'PPMd order {order}': ppmd(order) for order in _PPMD_ORDERS}


def bits_per_byte(train: bytes, held_out: bytes) -> dict[str, float]:
  """Computes what a held-out text costs each program after another text.

  Args:
    train: Text that comes before; it costs nothing.
    held_out: Text that is measured, at least 1 byte.

  Returns:
    Bits per byte of `held_out`, by the name of the program.
  """
  return {
    name: 8 * (size(train + held_out) - size(train)) / len(held_out)
    for name, size in programs().items()
  }


def of_data(
  config: DataConfig, max_documents: int | None = None
) -> dict[str, float]:
  """Computes `bits_per_byte` of documents that a run holds out.

  Of longer training texts the programs read the last 64 MiB.

  Args:
    config: The data of the run.
    max_documents: Number of documents to take, evenly spaced; None for all.

  Raises:
    ValueError: If documents are missing, cannot be read or hold no bytes.
  """
  train, _ = open_data(config, max_documents=1)
  held_out = open_documents(config, None, max_documents).documents
  text = _last_bytes(held_out, sys.maxsize)
  if not text:
    raise ValueError('data.validation: has no bytes, allowed: at least 1')
  return bits_per_byte(_last_bytes(train.documents, _MAX_BYTES), text)


def _last_bytes(documents: Documents, num_bytes: int) -> bytes:
  """Returns the end of documents that are read one after the other."""
  documents.require_bytes()
  parts: list[bytes] = []
  for document in reversed(documents):
    if num_bytes <= 0:
      break
    parts.insert(0, document.read_bytes()[-num_bytes:])
    num_bytes -= len(parts[0])
  return b''.join(parts)


def main(argv: Sequence[str]) -> None:
  """Prints a table."""
  parser = timing.make_parser('primed', __doc__)
  parser.add_argument('config', nargs='?', default='default')
  config_file.add_overrides(parser)
  args = parser.parse_args(argv)
  try:
    found = of_data(config_file.load(args.config, args.set).data)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  report = timing.Report(parser.prog, argv, args.json)
  rows = [{'by': name, 'bits/byte': bits} for name, bits in found.items()]
  report.add(rows, decimals=3)


if __name__ == '__main__':
  main(sys.argv[1:])
