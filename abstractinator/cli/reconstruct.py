"""Command `abstractinator reconstruct`."""

import argparse
import math

from abstractinator.cli import common
from abstractinator.evaluation import units

EXAMPLE = 'abstractinator reconstruct RUN notes.txt'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator reconstruct`."""
  common.add(parser, 'workdir', '--step', 'file', '--json')


def run(args: argparse.Namespace) -> str:
  """Encodes a text, decodes it from its codes alone and prints the result."""
  data = common.read_text(args)
  pyramid = common.load(args)
  result = pyramid.reconstruct(data)
  bits = math.log2(pyramid.config.model.levels[-1].quantizer.num_codes)
  rate = result.num_codes * bits / len(data)
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
      'num_codes': result.num_codes,
      'code_capacity_bits_per_byte': rate,
      'exact': result.exact,
    },
    '\n'.join(
      [
        text,
        *units.table(
          {
            'bytes right, from codes alone': f'{result.byte_accuracy:.2%}',
            'bytes right, teacher-forced': (
              f'{result.teacher_forced_byte_accuracy:.2%}'
            ),
            'segments': f'{result.num_segments} of {len(data)} bytes,'
            f' {result.bytes_per_segment:.2f} bytes/segment',
            'codes': f'{result.num_codes} of {bits:.4g} bits, at most'
            f' {rate:.3f} bits/byte',
          }
        ),
        'codes are lossy: bytes that they do not determine are guessed',
      ]
    ),
  )
