"""Arguments, input and output that several commands share."""

import argparse
import json
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from abstractinator.data.whole_files import TEMPORARY, write_whole

if TYPE_CHECKING:
  from abstractinator.inference import TrainedPyramid


class Stop(Exception):  # noqa: N818
  """End of a command with an exit status of its own.

  Attributes:
    status: Exit status of the process.
    line: Line for standard error; None for none.
  """

  def __init__(self, status: int, line: str | None):
    super().__init__(line)
    self.status, self.line = status, line


def at_least(least: int) -> Callable[[str], int]:
  """Returns a type for argparse: an integer that is not below `least`."""

  def parse(text: str) -> int:
    try:
      value = int(text)
    except ValueError:
      value = least - 1
    if value < least:
      raise argparse.ArgumentTypeError(f'got {text}, allowed: at least {least}')
    return value

  return parse


# Arguments of several commands; `add` adds them to a parser.
_ARGUMENTS: dict[str, dict[str, Any]] = {
  'workdir': {
    'type': os.path.expanduser,
    'help': 'directory of the run or of an exported model, or hf:NAME for a'
    ' model on the Hugging Face Hub',
  },
  '--step': {
    'type': int,
    'help': 'step of the checkpoint; default: the latest one',
  },
  'file': {
    'nargs': '?',
    'type': os.path.expanduser,
    'default': '-',
    'help': 'file with the text; default: -, for standard input',
  },
  '--json': {
    'action': 'store_true',
    'help': 'print JSON in place of plain text',
  },
  '--force': {
    'action': 'store_true',
    'help': 'replace a file that exists; default: it is an error',
  },
  '--entropy_model_only': {
    'action': 'store_true',
    'help': 'use the entropy model of the first level alone, without codes',
  },
  '--stride': {
    'type': int,
    'help': 'ids that each window of a long document scores, after context that'
    ' fills the rest of its row; default: half of data.sequence_length',
  },
  '--batch_size': {
    'type': at_least(1),
    'help': 'rows of a batch; default: as many as have 8192 ids',
  },
  '--candidates': {
    'type': at_least(1),
    'default': 1,
    'help': 'number of nearest codes of a top segment of which the cheapest in'
    ' bits is taken; default: %(default)s',
  },
}


def add(parser: argparse.ArgumentParser, *names: str) -> None:
  """Adds arguments that several commands have to a parser."""
  for name in names:
    parser.add_argument(name, **_ARGUMENTS[name])


def add_files(parser: argparse.ArgumentParser) -> None:
  """Adds the file that a command reads and the one it writes."""
  for name, use in (
    ('file', 'read, or - for standard input'),
    ('out', 'write'),
  ):
    parser.add_argument(name, type=os.path.expanduser, help=f'file to {use}')
  add(parser, '--force')


def read_text(args: argparse.Namespace) -> bytes:
  """Reads the bytes of `file`.

  Raises:
    ValueError: If the file is empty.
    OSError: If it cannot be read.
  """
  data = read_bytes(args.file)
  if not data:
    name = 'standard input' if args.file == '-' else args.file
    raise ValueError(f'{name}: is empty, allowed: at least 1 byte')
  return data


def read_bytes(path: str) -> bytes:
  """Reads a file, or standard input for -."""
  if path == '-':
    return sys.stdin.buffer.read()
  return pathlib.Path(path).read_bytes()


def require_new(path: str, *, force: bool = False) -> None:
  """Makes sure, before any work is done, that a new file can have a path.

  Args:
    path: Path of the file.
    force: Whether it may replace a file.

  Raises:
    ValueError: If the path exists, or its directory does not.
    OSError: If no file can be written there.
  """
  if os.path.isdir(path) or (os.path.lexists(path) and not force):
    raise ValueError(
      f'{path}: exists, allowed: a path with nothing there, or --force to'
      ' replace a file'
    )
  directory = os.path.dirname(path) or '.'
  if not os.path.isdir(directory):
    raise ValueError(
      f'{path}: got no directory {directory!r}, allowed: a path in one that'
      ' exists'
    )
  if os.path.lexists(path):
    tempfile.TemporaryFile(prefix=TEMPORARY, dir=directory).close()
  else:
    open(path, 'xb').close()
    os.unlink(path)


def write_new(path: str, content: bytes, *, force: bool = False) -> None:
  """Writes a new file, which appears whole or not at all; see `require_new`.

  Raises:
    ValueError: If the path exists by now, without `force`.
    OSError: If the file cannot be written.
  """
  try:
    write_whole(path, content, is_new=not force)
  except FileExistsError as error:
    raise ValueError(
      f'{path}: exists, allowed: a path with nothing there, or --force to'
      ' replace a file'
    ) from error


def say(text: str) -> None:
  """Tells on standard error what a command does or waits for."""
  sys.stderr.write(f'{text}\n')


def be_quiet() -> None:
  """Silences the logs of libraries; must come before jax is imported."""
  # Native code writes to standard error past Python's logging.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logging.disable(logging.WARNING)


def prepare() -> None:
  """Silences libraries and keeps compiled programs for the next command.

  It must come before jax is imported.
  """
  be_quiet()
  from abstractinator.runs import compilation_cache

  line = compilation_cache.use()
  if line is not None:
    say(line)


def load(args: argparse.Namespace) -> 'TrainedPyramid':
  """Opens the pyramid of `workdir` and `--step`, as `inference.load` does."""
  prepare()
  say(f'loading {args.workdir}')
  from abstractinator.inference import load

  pyramid = load(args.workdir, args.step)
  say(
    f'{pyramid.num_parameters:,} parameters of step {pyramid.step}, compiling'
  )
  return pyramid


def show(data: bytes) -> str:
  r"""Returns bytes as text; bytes that are not UTF-8 become `\xNN`."""
  return data.decode('utf-8', errors='backslashreplace')


def answer(args: argparse.Namespace, values: Any, text: str) -> str:
  """Returns values as JSON with `--json`, a text without."""
  return json.dumps(values) if args.json else text
