r"""The command `abstractinator`, for the use of trained runs.

    abstractinator --help              lists the commands
    abstractinator COMMAND --help      lists the arguments of a command
    abstractinator segment RUN FILE    runs a command

Bytes that are not UTF-8, such as those of a character that a boundary divides,
are shown as `\xNN`, in plain output and in JSON alike.
"""

import argparse
import contextlib
import importlib
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

# Commands in the order in which `--help` lists them; each has a module.
_COMMANDS = (
  *('segment', 'reconstruct', 'generate', 'encode', 'decode', 'view'),
  *('evaluate', 'lm-eval', 'compress', 'decompress', 'plan'),
)


class _Parser(argparse.ArgumentParser):
  """Parser that raises ValueError for a wrong command."""

  def error(self, message: str) -> NoReturn:
    raise ValueError(message.removeprefix('argument '))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command.

  Args:
    argv: Arguments of the command line; those of the process by default.

  Returns:
    The exit status: 0, or 2 after one line on standard error for bad input.
  """
  # A terminal that lacks a character must not end in an exception.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  try:
    args = _parser().parse_args(argv)
    output = args.command(args)
    # The reader of the output may stop early.
    with contextlib.suppress(BrokenPipeError):
      for part in [output, '\n'] if isinstance(output, str) else output:
        print(part, end='', flush=True)
  except (ValueError, NotImplementedError, OSError) as error:
    line = ' '.join(str(error).split())
    sys.stderr.write(f'abstractinator: error: {line}\n')
    return 2
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
    prog='abstractinator', description='Uses a run that is trained.'
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  for name in _COMMANDS:
    file = name.replace('-', '_')
    module = importlib.import_module(f'abstractinator.cli.{file}')
    about, *_ = (module.run.__doc__ or '').splitlines()
    command = commands.add_parser(name, help=about, description=about)
    module.add_arguments(command)
    command.set_defaults(command=module.run)
  return parser
