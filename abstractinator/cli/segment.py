"""Command `abstractinator segment`."""

import argparse

from abstractinator.cli import common

EXAMPLE = 'abstractinator segment RUN notes.txt'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator segment`."""
  common.add(parser, 'workdir', '--step', 'file', '--json')
  parser.add_argument(
    '--separator',
    default='|',
    help='text to print between segments; default: %(default)s',
  )


def run(args: argparse.Namespace) -> str:
  """Prints the segments of a text."""
  data = common.read_text(args)
  segments = [common.show(x) for x in common.load(args).segment(data)]
  return common.answer(args, segments, args.separator.join(segments))
