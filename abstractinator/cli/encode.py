"""Command `abstractinator encode`."""

import argparse
import os
from collections.abc import Iterator

from abstractinator.cli import common

EXAMPLE = 'abstractinator encode RUN notes.txt --out=notes.npz'
_SHARD_BYTES = 1 << 24
_FORMAT = 'parquet'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator encode`."""
  common.add(parser, 'workdir', '--step', 'file', '--json', '--force')
  parser.add_argument(
    '--level',
    type=int,
    help='number of the level whose codes are written, counted from 0; default:'
    ' the top level',
  )
  parser.add_argument(
    '--out',
    type=os.path.expanduser,
    help='file of codes to write, .npz or .parquet;'
    ' default: the codes are printed; with --data a directory of such files,'
    ' which is continued if it exists',
  )
  parser.add_argument(
    '--data',
    help='globs of the files of a corpus, which is encoded in place of FILE;'
    ' default: none',
  )
  parser.add_argument(
    '--shard_bytes',
    type=common.at_least(1),
    help='with --data: bytes of text after which a new file of codes begins;'
    f' default: {_SHARD_BYTES}',
  )
  parser.add_argument(
    '--format',
    choices=('parquet', 'npz'),
    help=f'with --data: format of the files of codes; default: {_FORMAT}',
  )


def run(args: argparse.Namespace) -> str | Iterator[str]:
  """Encodes a text or a corpus and prints the codes or writes them to files."""
  if args.data is not None:
    return _encode_corpus(args)
  for name in ('shard_bytes', 'format'):
    if getattr(args, name) is not None:
      raise ValueError(
        f'--{name}: got {getattr(args, name)}, allowed: only with --data'
      )
  from abstractinator.codes import files

  if args.out is not None:
    common.require_new(args.out, force=args.force)
    files.require_kind(args.out)
  data = common.read_text(args)
  codes = common.load(args).encode(data, args.level)
  if args.out is None:
    return common.answer(
      args,
      {
        'level': codes.level,
        'codes': codes.codes_N.tolist(),
        'segments_of_rows': codes.count_B.tolist(),
      },
      ' '.join(map(str, codes.codes_N)),
    )
  common.write_new(
    args.out, files.to_bytes(args.out, [codes]), force=args.force
  )
  num_codes, num_segments = len(codes.codes_N), int(codes.count_B.sum())
  return common.answer(
    args,
    {
      'level': codes.level,
      'num_bytes': len(data),
      'num_codes': num_codes,
      'num_segments': num_segments,
    },
    f'{len(data)} bytes in {num_codes} codes of level {codes.level},'
    f' {num_segments} segments',
  )


def _encode_corpus(args: argparse.Namespace) -> Iterator[str]:
  """Encodes the files of `--data`; returns a line for each shard it writes."""
  if args.file != '-':
    raise ValueError(f'--data: got {args.file} as well, allowed: one of them')
  if args.out is None:
    raise ValueError('--out: got none, allowed: a directory, with --data')
  if args.force:
    raise ValueError('--force: allowed: only without --data')
  from abstractinator.codes import corpus
  from abstractinator.data.sources import find_documents
  from abstractinator.runs.lock import Lock

  documents = find_documents(args.data)
  documents.require_bytes()
  # Another process that writes there would replace these files.
  with Lock(args.out):
    pyramid = common.load(args)
    number = pyramid.level_number(args.level)
    for shard in corpus.encode_corpus(
      args.out,
      documents,
      lambda texts: pyramid.encode_all(texts, number),
      about={
        'level': number,
        'model': pyramid.fingerprint(),
        'num_codes': pyramid.config.model.levels[number].quantizer.num_codes,
      },
      shard_bytes=args.shard_bytes or _SHARD_BYTES,
      kind=args.format or _FORMAT,
    ):
      line = (
        f'{shard["file"]}: {shard["num_bytes"]} bytes of {shard["num_texts"]}'
        f' texts in {shard["num_codes"]} codes'
      )
      yield common.answer(args, shard, line) + '\n'
