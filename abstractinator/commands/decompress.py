"""`abstractinator decompress`: what `compress` wrote, back."""

import argparse

from abstractinator.commands import common, compress

ABOUT = 'Restores a file that `compress` wrote, byte for byte.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  compress.add_files(parser)


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  common.require_new(args.out)
  with open(args.file, 'rb') as file:
    content = file.read()
  model = compress.open_model(args)
  from abstractinator.compression.codec import decompress

  try:
    data = decompress(model, content)
  except ValueError as error:
    raise ValueError(f'{args.file}: {error}') from error
  common.write_new(args.out, data)
  return f'{len(content)} bytes were {len(data)}'
