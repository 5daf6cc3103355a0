"""`abstractinator compress`: a file, smaller, under a run."""

import argparse
from typing import Any

from abstractinator.cli import common

ABOUT = 'Compresses a file without loss under the models of a run.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  add_files(parser)
  parser.add_argument(
    '--model',
    choices=('entropy_model', 'hierarchy'),
    default='entropy_model',
    help='what predicts: the next byte, or codes and bytes given them',
  )
  parser.add_argument(
    '--lanes',
    type=int,
    help='parts coded at once: more are faster, fewer smaller; 1 for 16 kB; of'
    ' the entropy model only',
  )


def add_files(parser: argparse.ArgumentParser) -> None:
  """Adds `file` and `out`."""
  parser.add_argument('file', help='what to read')
  parser.add_argument('out', help='what to write; must not exist')


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  common.require_new(args.out)
  is_hierarchy = args.model == 'hierarchy'
  if is_hierarchy and args.lanes is not None:
    raise ValueError(
      f'--lanes: got {args.lanes}, allowed: with --model entropy_model only'
    )
  with open(args.file, 'rb') as file:
    data = file.read()
  codec, model = open_codec(args, is_hierarchy)
  lanes = () if is_hierarchy else (args.lanes,)
  content = codec.compress(model, data, *lanes)
  common.write_new(args.out, content)
  bits = 8 * len(content) / max(len(data), 1)
  return f'{len(data)} bytes in {len(content)}, {bits:.3f} bits/byte'


def open_codec(args: argparse.Namespace, is_hierarchy: bool) -> tuple[Any, Any]:
  """What compresses, and the model of `workdir` and `--step` that it takes."""
  common.be_quiet()
  from abstractinator.compression import codec, hierarchy_codec
  from abstractinator.compression.byte_model import ByteModel
  from abstractinator.compression.hierarchy_model import HierarchyModel
  from abstractinator.runs.load import read_trained

  config, variables = read_trained(args.workdir, args.step)
  if is_hierarchy:
    return hierarchy_codec, HierarchyModel(config, variables)
  return codec, ByteModel(config, variables)
