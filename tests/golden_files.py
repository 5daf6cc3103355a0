"""Reference tensors computed with the PyTorch original, as numpy arrays.

Each file is one case: random weights and inputs, and what the original made of
them (OilProducts/abstractinator at 8b7e953).
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
  """One file.

  Attributes:
    name: Of the file.
    cfg: Constructor arguments and notes.
    arrays: Every array by its full name, such as 'param/qkv.weight'.
  """

  name: str
  cfg: dict[str, Any]
  arrays: dict[str, np.ndarray]

  def group(self, prefix: str) -> dict[str, np.ndarray]:
    """Arrays below a prefix, by the rest of their names."""
    start = f'{prefix}/'
    return {
      name.removeprefix(start): array
      for name, array in self.arrays.items()
      if name.startswith(start)
    }


def paths(folder: str, pattern: str) -> list[pathlib.Path]:
  """Files of a kind; it is an error if there are none."""
  found = sorted(pathlib.Path(folder).glob(f'{pattern}.npz'))
  if not found:
    raise ValueError(f'--golden-dir: {folder} holds no {pattern}.npz')
  return found


def load(path: pathlib.Path) -> Case:
  """Reads a file."""
  with np.load(path, allow_pickle=False) as data:
    arrays = {name: data[name] for name in data.files if name != 'cfg'}
    cfg = json.loads(str(data['cfg']))
  return Case(path.stem, cfg, arrays)
