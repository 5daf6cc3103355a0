r"""The command `abstractinator`: a trained level on a file or standard input.

    abstractinator segment WORKDIR [FILE]       the text, divided
    abstractinator reconstruct WORKDIR [FILE]   the text, from its codes alone

Bytes that are no UTF-8, such as those of a character that a boundary divides,
are shown as `\xNN`, in plain output and in JSON alike.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
  """Answers a wrong command in one line, as any other bad input."""

  def error(self, message: str) -> NoReturn:
    self.exit(2, _error_line(message))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command.

  Args:
    argv: Its arguments, those of the process by default.

  Returns:
    The exit status: 0, or 2 after one line on standard error for bad input.
  """
  args = _parser().parse_args(argv)
  try:
    output = args.command(args)
  except (ValueError, OSError) as error:
    sys.stderr.write(_error_line(str(error)))
    return 2
  # A terminal that lacks a character must not end in an exception.
  sys.stdout.reconfigure(errors='backslashreplace')
  # Whoever reads it may have seen enough.
  with contextlib.suppress(BrokenPipeError):
    print(output, flush=True)
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog='abstractinator', description='A trained level.')
  commands = parser.add_subparsers(required=True, metavar='COMMAND')

  def add(name, function, about):
    command = commands.add_parser(name, help=about, description=about)
    command.set_defaults(command=function)
    command.add_argument('workdir', help='directory of the run')
    command.add_argument(
      'file', nargs='?', default='-', help='text; standard input by default'
    )
    command.add_argument('--step', type=int, help='checkpoint, the latest')
    command.add_argument('--json', action='store_true', help='print JSON')
    return command

  segment = add('segment', _segment, 'Prints a text with its segments.')
  segment.add_argument(
    '--separator', default='|', help='between segments (%(default)s)'
  )
  add(
    'reconstruct',
    _reconstruct,
    'Encodes a text, decodes it from its codes alone, prints what came back.',
  )
  return parser


def _segment(args: argparse.Namespace) -> str:
  data, level = _open(args)
  segments = [_show(segment) for segment in level.segment(data)]
  if args.json:
    return json.dumps(segments)
  return args.separator.join(segments)


def _reconstruct(args: argparse.Namespace) -> str:
  data, level = _open(args)
  result = level.reconstruct(data)
  if args.json:
    return json.dumps(
      {
        'text': _show(result.text),
        'byte_accuracy': result.byte_accuracy,
        'teacher_forced_byte_accuracy': result.teacher_forced_byte_accuracy,
        'num_bytes': len(data),
        'num_segments': result.num_segments,
        'bytes_per_segment': result.bytes_per_segment,
        'exact': result.exact,
      }
    )
  return (
    f'{_show(result.text)}\n'
    f'byte accuracy {result.byte_accuracy:.2%} free-running,'
    f' {result.teacher_forced_byte_accuracy:.2%} teacher-forced;'
    f' {len(data)} bytes in {result.num_segments} segments,'
    f' {result.bytes_per_segment:.2f} bytes/segment'
  )


def _open(args: argparse.Namespace):
  """The text and the level of a command."""
  # What is quick to find wrong comes before jax.
  if args.file == '-':
    data = sys.stdin.buffer.read()
  else:
    with open(args.file, 'rb') as file:
      data = file.read()
  if not data:
    name = 'standard input' if args.file == '-' else args.file
    raise ValueError(f'{name}: is empty, allowed: at least 1 byte')
  # Native code writes to standard error past Python's logging.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logging.disable(logging.WARNING)
  from abstractinator.api import load

  return data, load(args.workdir, args.step)


def _show(data: bytes) -> str:
  return data.decode('utf-8', errors='backslashreplace')


def _error_line(message: str) -> str:
  return f'abstractinator: error: {" ".join(message.split())}\n'
