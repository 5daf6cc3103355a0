"""Files that appear whole or not at all."""

import os
import tempfile

# Begins the name of the directory in which a file is written; one that was
# killed meanwhile leaves it.
TEMPORARY = '.abstractinator-'


def write_whole(path: str, content: bytes) -> None:
  """Writes a file that appears whole or not at all; an old one is replaced.

  Raises:
    OSError: If it cannot be written; then an old file is unchanged.
  """
  directory = os.path.dirname(path) or '.'
  with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=directory) as folder:
    temporary = os.path.join(folder, 'content')
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      # Else the file might be renamed before its content is on the disk.
      os.fsync(file.fileno())
    os.replace(temporary, path)
