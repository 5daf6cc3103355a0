"""Reference tensors computed with the PyTorch original, as numpy arrays.

Each file is one case: random weights and inputs, and the outputs of the
original (OilProducts/abstractinator at 8b7e953).
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

# Folder with files of every kind.
DEFAULT = pathlib.Path(__file__).parents[1] / 'golden'


@dataclasses.dataclass(frozen=True)
class Case:
  """Reference tensors of one file.

  Attributes:
    name: Name of the file, without its ending.
    cfg: Constructor arguments and notes.
    arrays: Arrays by their full names, such as 'param/qkv.weight'.
  """

  name: str
  cfg: dict[str, Any]
  arrays: dict[str, np.ndarray]

  def group(self, prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays below a prefix, by the rest of their names."""
    start = f'{prefix}/'
    return {
      name.removeprefix(start): array
      for name, array in self.arrays.items()
      if name.startswith(start)
    }


def find(
  folder: str, pattern: str, where: Callable[[Case], bool] | None = None
) -> list[Case]:
  """Reads all files of a kind.

  Args:
    folder: Folder of the files.
    pattern: Pattern of their names, without the ending.
    where: Function that is True for files to keep; None for all.

  Returns:
    The files; none if the folder has only other kinds.

  Raises:
    ValueError: If the folder does not exist or has no files at all, or if it is
      the default one and lacks the kind.
  """
  place = pathlib.Path(folder)
  if not any(place.glob('*.npz')):
    raise ValueError(f'--golden-dir: {folder} is no folder with *.npz')
  cases = [load(path) for path in sorted(place.glob(f'{pattern}.npz'))]
  found = [case for case in cases if where is None or where(case)]
  if not found and place.resolve() == DEFAULT.resolve():
    raise ValueError(f'{folder} lacks {pattern}.npz of the kind of a test')
  return found


def load(path: pathlib.Path) -> Case:
  """Reads a file."""
  with np.load(path, allow_pickle=False) as data:
    arrays = {name: data[name] for name in data.files if name != 'cfg'}
    cfg = json.loads(str(data['cfg']))
  return Case(path.stem, cfg, arrays)
