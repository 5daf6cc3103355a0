"""Command `abstractinator view`."""

import argparse
import os

from abstractinator.cli import common

EXAMPLE = 'abstractinator view RUN notes.txt --html=notes.html'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator view`."""
  common.add(parser, 'workdir', '--step', 'file', '--force')
  parser.add_argument(
    '--html', required=True, type=os.path.expanduser, help='HTML file to write'
  )


def run(args: argparse.Namespace) -> str:
  """Writes an HTML page that shows a text, its segments and its codes."""
  common.require_new(args.html, force=args.force)
  data = common.read_text(args)
  pyramid = common.load(args)
  from abstractinator.view.page import page

  inspection = pyramid.inspect(data)
  name = 'standard input' if args.file == '-' else os.path.basename(args.file)
  assert pyramid.step is not None
  content = page(
    inspection,
    pyramid.config.model.levels,
    # The page is UTF-8, but the names of files need not be.
    name=common.show(os.fsencode(name)),
    run=common.show(os.fsencode(args.workdir)),
    step=pyramid.step,
  )
  common.write_new(args.html, content, force=args.force)
  counts = ' and '.join(str(len(x.lengths_P)) for x in inspection.levels)
  return (
    f'{args.html}: {len(data)} bytes in {counts} segments,'
    f' {inspection.byte_accuracy:.2%} of bytes back from codes alone,'
    f' {len(content) / 1e6:.2f} MB'
  )
