"""`abstractinator view`: a text and its codes, to look at in a browser."""

import argparse
import os

from abstractinator.cli import common

ABOUT = 'Writes a page that shows a text, its segments and codes.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  common.add_text(parser)
  parser.add_argument(
    '--html', required=True, help='page to write; must not exist'
  )


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  common.require_new(args.html)
  data = common.read_text(args)
  level = common.load(args)
  from abstractinator.runs.checkpoint import latest_step
  from abstractinator.view.page import page

  inspection = level.inspect(data)
  name = 'standard input' if args.file == '-' else os.path.basename(args.file)
  content = page(
    inspection,
    level.config.model.levels,
    # Names of files need not be UTF-8, a page is.
    name=common.show(os.fsencode(name)),
    run=common.show(os.fsencode(args.workdir)),
    step=latest_step(args.workdir) if args.step is None else args.step,
  )
  common.write_new(args.html, content)
  counts = ' and '.join(str(len(x.lengths_P)) for x in inspection.levels)
  return (
    f'{args.html}: {len(data)} bytes in {counts} segments,'
    f' {inspection.byte_accuracy:.2%} of bytes back from codes alone,'
    f' {len(content) / 1e6:.2f} MB'
  )
