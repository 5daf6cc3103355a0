"""`abstractinator encode`: a text, or a corpus, to codes."""

import argparse
import json
from collections.abc import Iterator

from abstractinator.cli import common

ABOUT = 'Encodes a text or a corpus, prints codes or writes them to files.'
_SHARD_BYTES = 1 << 24
_FORMAT = 'parquet'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  common.add_text(parser)
  common.add_json(parser)
  parser.add_argument(
    '--level', type=int, help='whose codes, from 0; the top level by default'
  )
  parser.add_argument(
    '--out',
    help='file to write, .npz or .parquet, which must not exist; with --data a'
    ' directory, gone on with if it is there',
  )
  parser.add_argument(
    '--data', help='globs of files, a corpus in the place of FILE'
  )
  parser.add_argument(
    '--shard_bytes',
    type=int,
    help=f'with --data: text of a shard ({_SHARD_BYTES})',
  )
  parser.add_argument(
    '--format',
    choices=('parquet', 'npz'),
    help=f'with --data: of shards ({_FORMAT})',
  )


def run(args: argparse.Namespace) -> str | Iterator[str]:
  """See `commands`."""
  if args.data is not None:
    return _corpus(args)
  for name in ('shard_bytes', 'format'):
    if getattr(args, name) is not None:
      raise ValueError(
        f'--{name}: got {getattr(args, name)}, allowed: only with --data'
      )
  if args.out is not None:
    common.require_new(args.out)
  data = common.read_text(args)
  level = common.load(args)
  from abstractinator.codes import files

  codes = level.encode(data, args.level)
  num_segments = int(codes.count_B.sum())
  if args.out is not None:
    common.write_new(args.out, files.to_bytes(args.out, [codes]))
  elif args.json:
    return json.dumps(
      {
        'level': codes.level,
        'codes': codes.codes_N.tolist(),
        'segments_of_rows': codes.count_B.tolist(),
      }
    )
  else:
    return ' '.join(map(str, codes.codes_N))
  figures = {
    'level': codes.level,
    'num_bytes': len(data),
    'num_codes': len(codes.codes_N),
    'num_segments': num_segments,
  }
  if args.json:
    return json.dumps(figures)
  return (
    f'{len(data)} bytes in {len(codes.codes_N)} codes of level {codes.level},'
    f' {num_segments} segments'
  )


def _corpus(args: argparse.Namespace) -> Iterator[str]:
  if args.file != '-':
    raise ValueError(f'--data: got {args.file} as well, allowed: one of them')
  if args.shard_bytes is not None and args.shard_bytes < 1:
    raise ValueError(
      f'--shard_bytes: got {args.shard_bytes}, allowed: at least 1'
    )
  if args.out is None:
    raise ValueError('--out: got none, allowed: a directory, with --data')
  from abstractinator.codes import corpus
  from abstractinator.data.sources import find_documents

  documents = find_documents(args.data)
  documents.require_bytes()
  level = common.load(args)
  number = level.level_number(args.level)
  about = {
    'level': number,
    'model': level.fingerprint(),
    'num_codes': level.config.model.levels[number].quantizer.num_codes,
  }
  written = corpus.encode_corpus(
    args.out,
    documents,
    lambda texts: level.encode_all(texts, number),
    about=about,
    shard_bytes=args.shard_bytes or _SHARD_BYTES,
    kind=args.format or _FORMAT,
  )
  return _lines(written, args.json)


def _lines(shards, as_json: bool) -> Iterator[str]:
  """A line for each shard as it is written."""
  for shard in shards:
    if as_json:
      yield json.dumps(shard) + '\n'
    else:
      yield (
        f'{shard["file"]}: {shard["num_bytes"]} bytes of {shard["num_texts"]}'
        f' texts in {shard["num_codes"]} codes\n'
      )
