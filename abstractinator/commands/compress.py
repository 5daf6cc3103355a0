"""`abstractinator compress`: a file, smaller, under the entropy model."""

import argparse
from typing import TYPE_CHECKING

from abstractinator.commands import common

if TYPE_CHECKING:
  from abstractinator.compression.byte_model import ByteModel

ABOUT = 'Compresses a file without loss under the entropy model of a run.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  add_files(parser)
  parser.add_argument(
    '--lanes',
    type=int,
    help='parts coded at once: more are faster, fewer smaller; 1 for 16 kB',
  )


def add_files(parser: argparse.ArgumentParser) -> None:
  """Adds `file` and `out`."""
  parser.add_argument('file', help='what to read')
  parser.add_argument('out', help='what to write; must not exist')


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  common.require_new(args.out)
  with open(args.file, 'rb') as file:
    data = file.read()
  model = open_model(args)
  from abstractinator.compression.codec import compress

  content = compress(model, data, args.lanes)
  common.write_new(args.out, content)
  bits = 8 * len(content) / max(len(data), 1)
  return f'{len(data)} bytes in {len(content)}, {bits:.3f} bits/byte'


def open_model(args: argparse.Namespace) -> 'ByteModel':
  """The entropy model of `workdir` and `--step`."""
  common.be_quiet()
  from abstractinator.compression.byte_model import ByteModel
  from abstractinator.evaluation.evaluator import open_run

  evaluator = open_run(args.workdir, args.step)
  return ByteModel(evaluator.config, evaluator.variables)
