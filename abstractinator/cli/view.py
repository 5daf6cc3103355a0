"""Command `abstractinator view`."""

import argparse
import os

from abstractinator.cli import common

EXAMPLE = 'abstractinator view RUN notes.txt --html=notes.html'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator view`."""
  common.add(parser, 'workdir')
  parser.add_argument(
    'file',
    nargs='*',
    metavar='FILE',
    default=['-'],
    type=os.path.expanduser,
    help='file with the text, after the directory of another run to show beside'
    ' the first one, at the same --step; default: no other run, and -, for'
    ' standard input',
  )
  common.add(parser, '--step', '--force')
  parser.add_argument(
    '--html', required=True, type=os.path.expanduser, help='HTML file to write'
  )


def run(args: argparse.Namespace) -> str:
  """Writes an HTML page that shows a text, its segments and its codes."""
  *others, args.file = args.file
  if len(others) > 1:
    raise ValueError(
      f'RUN2: got {" ".join(others)}, allowed: one run beside the first one'
    )
  common.require_new(args.html, force=args.force)
  data = common.read_text(args)
  from abstractinator.view import page

  name = 'standard input' if args.file == '-' else os.path.basename(args.file)
  # The page is UTF-8, but the names of files need not be.
  name = common.show(os.fsencode(name))
  pages, lines = [], []
  for workdir in (args.workdir, *others):
    args.workdir = workdir
    pyramid = common.load(args)
    inspection = pyramid.inspect(data)
    assert pyramid.step is not None
    pages.append(
      page.page(
        inspection,
        pyramid.config.model.levels,
        name=name,
        run=common.show(os.fsencode(workdir)),
        step=pyramid.step,
      )
    )
    counts = ' and '.join(str(len(x.lengths_P)) for x in inspection.levels)
    lines.append(
      f'{len(data)} bytes in {counts} segments,'
      f' {inspection.byte_accuracy:.2%} of bytes back from codes alone'
    )
  content = page.beside(pages, name) if others else pages[0]
  common.write_new(args.html, content, force=args.force)
  lines.append(f'{len(content) / 1e6:.2f} MB')
  return f'{args.html}: {", ".join(lines)}'
