"""Command `abstractinator decompress`."""

import argparse

from abstractinator.cli import common, compress

EXAMPLE = 'abstractinator decompress RUN notes.small notes.txt'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator decompress`."""
  common.add(parser, 'workdir', '--step')
  common.add_files(parser)


def run(args: argparse.Namespace) -> str:
  """Restores a file that `compress` wrote, byte for byte."""
  common.require_new(args.out, force=args.force)
  content = common.read_bytes(args.file)
  common.prepare()
  from abstractinator.compression import codec, container

  try:
    header, _ = container.unpack(content)
    model = compress.open_model(args, header.model == container.HIERARCHY)
    data = codec.decompress(model, content)
  except ValueError as error:
    raise ValueError(f'{args.file}: {error}') from error
  common.write_new(args.out, data, force=args.force)
  return f'{len(data)} bytes restored from {len(content)}'
