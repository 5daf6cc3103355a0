"""Libraries that come with an extra of the package."""

import importlib
from types import ModuleType


def import_extra(module: str, extra: str, where: str) -> ModuleType:
  """Imports a module of a library that comes with an extra of the package.

  Args:
    module: Name of the module, such as 'pyarrow.parquet'.
    extra: Name of the extra, such as 'parquet'.
    where: Name of the file or data set that needs it, for the message.

  Raises:
    ValueError: If the library is not installed.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ValueError(
      f"{where}: needs {module}, allowed: pip install 'abstractinator[{extra}]'"
    ) from error
