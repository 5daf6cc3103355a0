r"""The command `abstractinator`: trains runs and uses them.

    abstractinator --help              lists the commands
    abstractinator COMMAND --help      lists the arguments of a command
    abstractinator segment RUN FILE    runs a command

Bytes that are not UTF-8, such as those of a character that a boundary divides,
are shown as `\xNN`, in plain output and in JSON alike.
"""

import argparse
import contextlib
import difflib
import importlib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NoReturn

import abstractinator
from abstractinator.cli import common
from abstractinator.runs import allocator

# Commands in the order in which `--help` lists them; each has a module.
_COMMANDS = (
  *('train', 'compare', 'segment', 'reconstruct', 'view', 'generate'),
  *('evaluate', 'encode', 'decode', 'compress', 'decompress', 'lm-eval'),
  *('export', 'plan'),
)

# Status of a process that Ctrl-C ends, as shells have it.
_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
  """Parser that raises ValueError for a wrong command."""

  def error(self, message: str) -> NoReturn:
    raise ValueError(message.removeprefix('argument '))


def main(
  argv: Sequence[str] | None = None, program: str = 'abstractinator'
) -> int:
  """Runs a command.

  Args:
    argv: Arguments of the command line; those of the process by default.
    program: Name of the program, which begins its messages.

  Returns:
    The exit status: 0, or 2 after one line on standard error for bad input.
  """
  if argv is None:
    argv = sys.argv[1:]
    if argv[:1] == ['train']:
      allocator.keep_memory()
  # A terminal that lacks a character must not end in an exception.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  try:
    output = _run(argv, program)
    # The reader of the output may stop early.
    with contextlib.suppress(BrokenPipeError):
      for part in [output, '\n'] if isinstance(output, str) else output:
        print(part, end='', flush=True)
  except common.Stop as stop:
    if stop.line is not None:
      sys.stderr.write(f'{program}: {stop.line}\n')
    return stop.status
  except (ValueError, NotImplementedError, OSError) as error:
    line = ' '.join(str(error).split())
    sys.stderr.write(f'{program}: error: {line}\n')
    _drop_output()
    return 2
  except KeyboardInterrupt:
    sys.stderr.write(f'{program}: interrupted\n')
    return _INTERRUPTED
  return 0


def _drop_output() -> None:
  """Drops output that is not written yet.

  Python would try again at its end, and fail again on a full disk.
  """
  try:
    sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str], program: str) -> str | Iterable[str]:
  """Runs the command that a command line names; see `cli` for its result."""
  general = _general_parser()
  if not argv:
    return general.format_help().rstrip()
  # Options of a command come after its name, so this finds the name.
  name = general.parse_args(argv[:1]).command
  module = _module(name)
  parser = _Parser(
    prog=program if program.endswith('.py') else f'{program} {name}',
    description=_about(module),
    epilog=f'example: {module.EXAMPLE}',
    allow_abbrev=False,
  )
  module.add_arguments(parser)
  # A file may stand before options and after them.
  args, rest = parser.parse_known_intermixed_args(argv[1:])
  if hasattr(args, 'settings'):
    args.settings = rest
  elif rest:
    near = difflib.get_close_matches(rest[0].partition('=')[0], _flags(parser))
    parser.error(
      f'{rest[0]}: unknown argument, allowed:'
      f' {", ".join(near) or "those of --help"}'
    )
  return module.run(args)


def _general_parser() -> argparse.ArgumentParser:
  """Returns the parser of the first argument, which lists all commands."""
  parser = _Parser(
    prog='abstractinator',
    usage='abstractinator [--help] [--version] COMMAND ...',
    description='Trains hierarchies of codes over bytes, and uses them.',
    epilog='abstractinator COMMAND --help lists the arguments of a command.\n'
    'example: abstractinator train --config=tiny',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--version',
    action='version',
    version=f'abstractinator {abstractinator.__version__}',
  )
  commands = parser.add_subparsers(
    required=True, metavar='COMMAND', dest='command'
  )
  for name in _COMMANDS:
    commands.add_parser(name, help=_about(_module(name)), add_help=False)
  return parser


def _module(name: str) -> ModuleType:
  return importlib.import_module(f'abstractinator.cli.{name.replace("-", "_")}')


def _about(module: ModuleType) -> str:
  """Returns the help text of a command."""
  return (module.run.__doc__ or '').splitlines()[0]


def _flags(parser: argparse.ArgumentParser) -> list[str]:
  return [flag for action in parser._actions for flag in action.option_strings]
