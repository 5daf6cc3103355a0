"""Command `abstractinator reconstruct`."""

import argparse

from abstractinator.cli import common

EXAMPLE = 'abstractinator reconstruct RUN notes.txt'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator reconstruct`."""
  common.add(parser, 'workdir', '--step', 'file', '--json')


def run(args: argparse.Namespace) -> str:
  """Encodes a text, decodes it from its codes alone and prints the result."""
  data = common.read_text(args)
  result = common.load(args).reconstruct(data)
  text = common.show(result.text)
  return common.answer(
    args,
    {
      'text': text,
      'byte_accuracy': result.byte_accuracy,
      'teacher_forced_byte_accuracy': result.teacher_forced_byte_accuracy,
      'num_bytes': len(data),
      'num_segments': result.num_segments,
      'bytes_per_segment': result.bytes_per_segment,
      'exact': result.exact,
    },
    f'{text}\n'
    f'byte accuracy {result.byte_accuracy:.2%} free-running,'
    f' {result.teacher_forced_byte_accuracy:.2%} teacher-forced;'
    f' {len(data)} bytes in {result.num_segments} segments,'
    f' {result.bytes_per_segment:.2f} bytes/segment',
  )
