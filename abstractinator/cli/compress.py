"""Command `abstractinator compress`."""

import argparse
from typing import TYPE_CHECKING

from abstractinator.cli import common

if TYPE_CHECKING:
  from abstractinator.compression.byte_model import ByteModel
  from abstractinator.compression.hierarchy_model import HierarchyModel

EXAMPLE = 'abstractinator compress RUN notes.txt notes.small'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator compress`."""
  common.add(parser, 'workdir', '--step', '--candidates')
  common.add_files(parser)
  parser.add_argument(
    '--model',
    choices=('entropy_model', 'hierarchy'),
    default='entropy_model',
    help='model whose predictions are used: the entropy model of the first'
    ' level predicts each byte from those before it; the hierarchy predicts top'
    ' codes, and ids from the codes above them; default: %(default)s',
  )
  parser.add_argument(
    '--lanes',
    type=int,
    help='number of parts of the file that are compressed side by side: more'
    ' are faster, fewer make a smaller file; only for --model entropy_model;'
    ' default: one for each 16 KiB, rounded down to a power of two, and at most'
    ' 256',
  )


def run(args: argparse.Namespace) -> str:
  """Compresses a file without loss under the models of a run."""
  common.require_new(args.out, force=args.force)
  is_hierarchy = args.model == 'hierarchy'
  if is_hierarchy and args.lanes is not None:
    raise ValueError(
      f'--lanes: got {args.lanes}, allowed: with --model entropy_model only'
    )
  if not is_hierarchy and args.candidates > 1:
    raise ValueError(
      f'--candidates: got {args.candidates}, allowed: with --model hierarchy'
      ' only'
    )
  data = common.read_bytes(args.file)
  model = open_model(args, is_hierarchy, candidates=args.candidates)
  from abstractinator.compression import codec

  content = codec.compress(model, data, args.lanes)
  common.write_new(args.out, content, force=args.force)
  bits = 8 * len(content) / max(len(data), 1)
  return f'{len(data)} bytes in {len(content)}, {bits:.3f} bits/byte'


def open_model(
  args: argparse.Namespace, is_hierarchy: bool, candidates: int = 1
) -> 'ByteModel | HierarchyModel':
  """Opens the model of `workdir` and `--step` that predicts a text.

  Args:
    args: Arguments of the command.
    is_hierarchy: Whether all levels predict it, not the entropy model alone.
    candidates: Number of codes of a top segment from which an encoder chooses.
  """
  common.prepare()
  common.say(f'loading {args.workdir}')
  from abstractinator.compression.byte_model import ByteModel
  from abstractinator.compression.hierarchy_model import HierarchyModel
  from abstractinator.runs.load import read_trained

  trained = read_trained(args.workdir, args.step)
  if is_hierarchy:
    return HierarchyModel(*trained, candidates=candidates)
  return ByteModel(*trained)
