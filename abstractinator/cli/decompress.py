"""`abstractinator decompress`: what `compress` wrote, back."""

import argparse

from abstractinator.cli import common, compress

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
  try:
    data = _decompress(args, content)
  except ValueError as error:
    raise ValueError(f'{args.file}: {error}') from error
  common.write_new(args.out, data)
  return f'{len(content)} bytes were {len(data)}'


def _decompress(args: argparse.Namespace, content: bytes) -> bytes:
  common.be_quiet()
  from abstractinator.compression import container

  header, _ = container.unpack(content)
  is_hierarchy = header.model == container.HIERARCHY
  codec, model = compress.open_codec(args, is_hierarchy)
  return codec.decompress(model, content)
