"""What several commands share."""

import argparse
import logging
import os
import sys
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from abstractinator.inference import TrainedPyramid


def add_run(parser: argparse.ArgumentParser) -> None:
  """Adds the run that a command is about: `workdir` and `--step`."""
  parser.add_argument('workdir', help='directory of the run')
  parser.add_argument('--step', type=int, help='checkpoint, the latest')


def add_text(parser: argparse.ArgumentParser) -> None:
  """Adds the text that a command reads: `file`."""
  parser.add_argument(
    'file', nargs='?', default='-', help='text; standard input by default'
  )


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds `--json`."""
  parser.add_argument('--json', action='store_true', help='print JSON')


def read_text(args: argparse.Namespace) -> bytes:
  """The bytes of `file`.

  Raises:
    ValueError: If there are none.
    OSError: If they cannot be read.
  """
  if args.file == '-':
    data = sys.stdin.buffer.read()
  else:
    with open(args.file, 'rb') as file:
      data = file.read()
  if not data:
    name = 'standard input' if args.file == '-' else args.file
    raise ValueError(f'{name}: is empty, allowed: at least 1 byte')
  return data


def require_new(path: str) -> None:
  """Refuses a path where something lies, or whose directory is not there.

  Raises:
    ValueError: If so: before any work is done.
  """
  if os.path.lexists(path):
    raise ValueError(f'{path}: exists, allowed: a path with nothing there')
  directory = os.path.dirname(path) or '.'
  if not os.path.isdir(directory):
    raise ValueError(
      f'{path}: got no directory {directory!r}, allowed: a path in one that'
      ' exists'
    )


def write_new(path: str, content: bytes) -> None:
  """Writes a file that appears whole or not at all; see `require_new`."""
  require_new(path)
  directory, name = os.path.split(path)
  descriptor, temporary = tempfile.mkstemp(dir=directory or '.', prefix=name)
  try:
    with open(descriptor, 'wb') as file:
      file.write(content)
    # Files of tempfile are their owner's alone; others are as the mask says.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def be_quiet() -> None:
  """Silences what libraries log; call it before jax is imported."""
  # Native code writes to standard error past Python's logging.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  logging.disable(logging.WARNING)


def load(args: argparse.Namespace) -> 'TrainedPyramid':
  """The level of `workdir` and `--step`; errors as of `api.load`."""
  be_quiet()
  from abstractinator.inference import load

  return load(args.workdir, args.step)


def show(data: bytes) -> str:
  r"""Bytes as text; those that are no UTF-8 as `\xNN`."""
  return data.decode('utf-8', errors='backslashreplace')
