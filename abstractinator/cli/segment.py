"""`abstractinator segment`: a text, divided."""

import argparse
import json

from abstractinator.cli import common

ABOUT = 'Prints a text with its segments.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  common.add_text(parser)
  common.add_json(parser)
  parser.add_argument(
    '--separator', default='|', help='between segments (%(default)s)'
  )


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  data = common.read_text(args)
  segments = [common.show(x) for x in common.load(args).segment(data)]
  if args.json:
    return json.dumps(segments)
  return args.separator.join(segments)
