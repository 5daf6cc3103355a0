"""Globs: the files that they match, each real file once."""

import collections
import glob
import itertools
import os
from collections.abc import Iterator

from abstractinator.data.documents import Skipped

# Device and inode, or the path of a file that is not there.
RealFile = tuple[int, int] | str


def real_file(path: str) -> RealFile:
  """Returns device and inode of a file, which are those of all its links.

  Args:
    path: Absolute path. Any other name, such as that of a data set, and a path
      without a file are returned as they are.
  """
  try:
    status = os.stat(path) if os.path.isabs(path) else None
  except OSError:
    status = None
  return (status.st_dev, status.st_ino) if status else path


def version(path: str) -> tuple[int, ...]:
  """Returns numbers that change when a file is replaced or written to.

  Raises:
    OSError: If there is no such file.
  """
  status = os.stat(path)
  return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def find_files(
  pattern: str, skipped: Skipped
) -> dict[RealFile, tuple[str, str]]:
  """Finds the files that a glob matches.

  Args:
    pattern: Glob; `**` matches any directories, `~` is the home directory. The
      working directory, the home directory and parts with brackets that exist
      as written stand for themselves. Directories are passed over, as are
      hidden files unless the glob has the dot.
    skipped: Takes directories that cannot be read.

  Returns:
    Absolute path and name of each real file. The name is the path below the
    part of the glob that has no wildcard, with '/' between its parts. A file
    that several paths lead to has the first path without links.

  Raises:
    ValueError: If the glob matches no file.
  """
  root, absolute = _resolve(pattern)
  paths_of: dict[RealFile, set[str]] = collections.defaultdict(set)
  has_directories = False
  for path in _expand(absolute, skipped):
    if os.path.isdir(path):
      has_directories = True
    else:
      paths_of[real_file(path)].add(path)
  if not paths_of:
    raise ValueError(
      f'{pattern!r}: matches directories but no file, allowed: globs of files'
      f' such as {os.path.join(pattern, "**")!r}'
      if pattern and has_directories
      else f'{pattern!r}: matches no file, allowed: comma-separated paths or'
      " globs such as 'texts/**/*.txt', with '?' for a comma in a path"
    )

  def has_links(path: str) -> bool:
    below = os.path.join(os.path.realpath(root), os.path.relpath(path, root))
    return os.path.realpath(path) != below

  found = {}
  for file, paths in paths_of.items():
    path = min(paths)
    if paths != {path}:
      path = min(paths, key=lambda path: (has_links(path), path))
    found[file] = path, os.path.relpath(path, root).replace(os.sep, '/')
  return found


def _resolve(pattern: str) -> tuple[str, str]:
  """Returns the part of a glob that has no wildcard, and the absolute glob."""
  home, here = os.path.expanduser('~'), os.getcwd()
  drive, *parts = os.path.abspath(os.path.expanduser(pattern)).split(os.sep)
  path = escaped = drive
  root = None
  for part in parts:
    parent, path = path, f'{path}{os.sep}{part}'
    is_wild = glob.has_magic(part) and not (
      f'{home}{os.sep}'.startswith(f'{path}{os.sep}')
      or f'{here}{os.sep}'.startswith(f'{path}{os.sep}')
      or ('[' in part and os.path.lexists(path))
    )
    escaped += os.sep + (part if is_wild else glob.escape(part))
    if is_wild and root is None:
      root = parent or os.sep
  return root or os.path.dirname(path), escaped


def _expand(pattern: str, skipped: Skipped) -> Iterator[str]:
  """Yields the paths that an absolute glob matches, some more than once."""
  # Each further `**` in a row would walk all directories again.
  parts = [
    part
    for part, after in itertools.zip_longest(
      *(pattern.split(os.sep)[start:] for start in (0, 1))
    )
    if (part, after) != ('**', '**')
  ]
  if '**' not in parts:
    yield from glob.iglob(pattern)
    return
  at = parts.index('**')
  below = parts[at + 1 :] or ['*']
  for top in glob.iglob(os.sep.join(parts[:at]) or os.sep):
    for directory in _directories(top, skipped):
      yield from _expand(os.path.join(glob.escape(directory), *below), skipped)


def _directories(top: str, skipped: Skipped) -> Iterator[str]:
  """Yields a directory and those below it that are not hidden.

  Each real directory is entered once, by a path without links if there is one,
  so that a link to a directory above does not lead round in circles.
  """

  def note(error: OSError) -> None:
    skipped.note('unreadable directories', str(error.filename))

  starts, seen = [top], set()
  while starts:
    links = []
    for start in sorted(starts):
      for directory, children, _ in os.walk(start, onerror=note):
        file = real_file(directory)
        if file in seen:
          children.clear()
          continue
        seen.add(file)
        # In place, so that os.walk takes them in this order.
        children[:] = sorted(x for x in children if not x.startswith('.'))
        paths = [os.path.join(directory, child) for child in children]
        links += [path for path in paths if os.path.islink(path)]
        yield directory
    starts = links
