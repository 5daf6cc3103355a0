"""Values of settings, as they are given on a command line."""

import ast
import json
from typing import Any

_NO_VALUE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def parse(text: str) -> Any:
  """A value of JSON or of Python; any other text stands for itself."""
  for value_of in (json.loads, ast.literal_eval):
    try:
      return value_of(text)
    except _NO_VALUE:
      continue
  return text
