"""`abstractinator reconstruct`: a text, from its codes alone."""

import argparse
import json

from abstractinator.cli import common

ABOUT = (
  'Encodes a text, decodes it from its codes alone, prints what came back.'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  common.add_text(parser)
  common.add_json(parser)


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  data = common.read_text(args)
  result = common.load(args).reconstruct(data)
  if args.json:
    return json.dumps(
      {
        'text': common.show(result.text),
        'byte_accuracy': result.byte_accuracy,
        'teacher_forced_byte_accuracy': result.teacher_forced_byte_accuracy,
        'num_bytes': len(data),
        'num_segments': result.num_segments,
        'bytes_per_segment': result.bytes_per_segment,
        'exact': result.exact,
      }
    )
  return (
    f'{common.show(result.text)}\n'
    f'byte accuracy {result.byte_accuracy:.2%} free-running,'
    f' {result.teacher_forced_byte_accuracy:.2%} teacher-forced;'
    f' {len(data)} bytes in {result.num_segments} segments,'
    f' {result.bytes_per_segment:.2f} bytes/segment'
  )
