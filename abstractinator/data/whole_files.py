"""Files that appear whole or not at all."""

import errno
import os
import tempfile

# Begins the name of the directory in which a file is written; one that was
# killed meanwhile leaves it.
TEMPORARY = '.abstractinator-'


# Errors of disks that have no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


def write_whole(
  path: str, content: bytes, *, is_new: bool = False, is_synced: bool = True
) -> None:
  """Writes a file that appears whole or not at all.

  Args:
    path: Path of the file.
    content: Bytes of the file.
    is_new: Whether a file that is there by now is an error; it is replaced
      otherwise.
    is_synced: Whether to wait for the disk. Without that a file may have lost
      content after a failure of power.

  Raises:
    OSError: If it cannot be written; then an old file is unchanged.
  """
  directory = os.path.dirname(path) or '.'
  with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=directory) as folder:
    temporary = os.path.join(folder, 'content')
    with open(temporary, 'wb') as file:
      file.write(content)
      if is_synced:
        file.flush()
        # Else the file might be renamed before its content is on the disk.
        os.fsync(file.fileno())
    if is_new:
      _link(temporary, path)
    else:
      os.replace(temporary, path)


def _link(temporary: str, path: str) -> None:
  """Gives a file a name that no other file has, or raises FileExistsError."""
  try:
    os.link(temporary, path)
  except OSError as error:
    if error.errno not in _NO_LINKS:
      raise
    open(path, 'xb').close()
    os.replace(temporary, path)
