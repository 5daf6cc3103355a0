r"""The command `abstractinator`: what to do with a trained run.

    abstractinator segment WORKDIR [FILE]       the text, divided
    abstractinator reconstruct WORKDIR [FILE]   the text, from its codes alone
    abstractinator generate WORKDIR --prompt TEXT   the text, continued
    abstractinator encode WORKDIR [FILE]        the codes of the text
    abstractinator decode WORKDIR CODES         and back
    abstractinator view WORKDIR [FILE] --html OUT   both, to look at
    abstractinator evaluate WORKDIR             how good the run is
    abstractinator lm-eval WORKDIR --tasks T    tasks of lm-evaluation-harness
    abstractinator compress WORKDIR FILE OUT    a file, smaller, without loss
    abstractinator decompress WORKDIR FILE OUT  and back
    abstractinator plan --config=FILE --topology=NAME   a run, before it is one

Bytes that are no UTF-8, such as those of a character that a boundary divides,
are shown as `\xNN`, in plain output and in JSON alike.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from abstractinator.cli import (
  compress,
  decode,
  decompress,
  encode,
  evaluate,
  generate,
  lm_eval,
  plan,
  reconstruct,
  segment,
  view,
)

_COMMANDS = (
  segment,
  reconstruct,
  generate,
  encode,
  decode,
  view,
  evaluate,
  lm_eval,
  compress,
  decompress,
  plan,
)


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
  # A terminal that lacks a character must not end in an exception.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    output = args.command(args)
    # Whoever reads it may have seen enough.
    with contextlib.suppress(BrokenPipeError):
      for part in [output, '\n'] if isinstance(output, str) else output:
        print(part, end='', flush=True)
  except (ValueError, NotImplementedError, OSError) as error:
    sys.stderr.write(_error_line(str(error)))
    return 2
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog='abstractinator', description='A trained level.')
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  for module in _COMMANDS:
    name = module.__name__.rpartition('.')[2].replace('_', '-')
    command = commands.add_parser(
      name, help=module.ABOUT, description=module.ABOUT
    )
    module.add_arguments(command)
    command.set_defaults(command=module.run)
  return parser


def _error_line(message: str) -> str:
  return f'abstractinator: error: {" ".join(message.split())}\n'
