"""Order of the rooms of the package, and length of its files and functions.

A room imports only itself and the rooms above it in `ROOMS`.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'abstractinator'
ROOMS = (
  'types',
  'config',
  'ops',
  'data',
  'codes',
  'model',
  'objective',
  'decoding',
  'runs',
  'evaluation',
  'training',
  'compression',
  'view',
  'inference',
  'planning',
  'cli',
  'benchmarks',
)
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
FILES = [*sorted((ROOT / PACKAGE).rglob('*.py')), ROOT / 'train.py']


def floor(module: str) -> int:
  """Position of a module's room; the package itself and train.py are on top."""
  package, _, rest = module.partition('.')
  room = rest.partition('.')[0]
  return ROOMS.index(room) if package == PACKAGE and room in ROOMS else 99


def imports(source: str):
  """Dotted names of the package that a file imports."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'relative import of {node.module}'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def upward(module: str, source: str) -> list[str]:
  own = [name for name in imports(source) if name.startswith(f'{PACKAGE}.')]
  return [name for name in own if floor(name) > floor(module)]


def code_lines(function: ast.FunctionDef) -> int:
  """Lines of a function without its docstring."""
  doc = function.body[0] if ast.get_docstring(function) else None
  size = function.end_lineno - function.lineno + 1
  return size - (doc.end_lineno - doc.lineno + 1 if doc else 0)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_import_downward_and_stay_short(path):
  source = path.read_text()
  module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
  assert not upward(module, source)
  assert len(source.splitlines()) <= MAX_FILE_LINES
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef):
      assert code_lines(node) <= MAX_FUNCTION_LINES, node.name


def test_files_of_tests_stay_short():
  files = (ROOT / 'tests').rglob('*.py')
  sizes = {path: len(path.read_text().splitlines()) for path in files}
  assert [path for path, size in sizes.items() if size > MAX_FILE_LINES] == []


def test_an_upward_import_is_found():
  assert upward('abstractinator.ops.rope', 'from abstractinator import model')
