"""`abstractinator encode`: a text to codes."""

import argparse
import json

from abstractinator.commands import common

ABOUT = 'Encodes a text, prints its codes or writes them to a file.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  common.add_text(parser)
  common.add_json(parser)
  parser.add_argument(
    '--level', type=int, help='whose codes, from 0; the top level by default'
  )
  parser.add_argument(
    '--out', help='file to write, .npz or .parquet; must not exist'
  )


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  if args.out is not None:
    common.require_new(args.out)
  data = common.read_text(args)
  level = common.load(args)
  from abstractinator import codes_files

  codes = level.encode(data, args.level)
  num_segments = int(codes.count_B.sum())
  if args.out is not None:
    common.write_new(args.out, codes_files.to_bytes(args.out, [codes]))
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
