"""Command `abstractinator decode`."""

import argparse
import os

from abstractinator.cli import common

EXAMPLE = 'abstractinator decode RUN notes.npz'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator decode`."""
  common.add(parser, 'workdir', '--step', '--json', '--force')
  parser.add_argument(
    'codes', type=os.path.expanduser, help='file of codes, .npz or .parquet'
  )
  parser.add_argument(
    '--out',
    type=os.path.expanduser,
    help='file to write the bytes of all texts to; default:'
    ' the texts are printed',
  )


def run(args: argparse.Namespace) -> str:
  """Decodes a file of codes and prints the texts or writes their bytes."""
  if args.out is not None:
    common.require_new(args.out, force=args.force)
  from abstractinator.codes import files

  codes = files.read_codes(args.codes)
  texts = common.load(args).decode_all(codes)
  joined = b''.join(texts)
  if args.out is None:
    return common.answer(
      args, [common.show(text) for text in texts], common.show(joined)
    )
  common.write_new(args.out, joined, force=args.force)
  return common.answer(
    args,
    {'num_texts': len(texts), 'num_bytes': len(joined)},
    f'{len(joined)} bytes of {len(texts)} texts',
  )
