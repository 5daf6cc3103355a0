"""`abstractinator decode`: codes to texts."""

import argparse
import json

from abstractinator.cli import common

ABOUT = 'Decodes a file of codes, prints the texts or writes their bytes.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  parser.add_argument('codes', help='file of codes, .npz or .parquet')
  common.add_json(parser)
  parser.add_argument(
    '--out', help='file to write the bytes to; must not exist'
  )


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  if args.out is not None:
    common.require_new(args.out)
  from abstractinator.codes import files

  codes = files.read_codes(args.codes)
  texts = common.load(args).decode_all(codes)
  joined = b''.join(texts)
  if args.out is not None:
    common.write_new(args.out, joined)
    figures = {'num_texts': len(texts), 'num_bytes': len(joined)}
    if args.json:
      return json.dumps(figures)
    return f'{len(joined)} bytes of {len(texts)} texts'
  if args.json:
    return json.dumps([common.show(text) for text in texts])
  return common.show(joined)
