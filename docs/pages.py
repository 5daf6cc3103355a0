"""Hook of mkdocs that fills in the parts of pages that code already says.

`reference/settings.md` gets a table for each group of settings, from the
comments and values of `configs/default.py`. `reference/commands.md` gets the
arguments of each command, from its parser, and `reference/metrics.md` tables of
figures, from `evaluation/meanings.toml`. Each stands in the place of an HTML
comment.
"""

import argparse
import ast
import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections.config_flags import config_path

ROOT = pathlib.Path(__file__).parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))

from abstractinator.cli import config_file  # noqa: E402
from abstractinator.cli import main as commands  # noqa: E402
from abstractinator.evaluation import units  # noqa: E402
from configs import default  # noqa: E402

_SETTINGS, _COMMANDS = '<!-- settings -->', '<!-- commands -->'
# Functions of configs/default.py in the order of the page: the group that each
# describes, and a config with its values.
_GROUPS = {
  'get_settings': ('config', default.get_settings),
  'get_level': ('config.model.levels[0]', default.get_level),
  'get_top_lm': ('config.model.top_lm', default.get_top_lm),
  'get_attention': ('...attention', default.get_attention),
}
# Groups whose settings without a comment are those of `entropy_model`.
_STACKS = ('encoder', 'expander', 'stack')


@dataclasses.dataclass(frozen=True)
class Setting:
  """A setting as configs/default.py describes it.

  Attributes:
    group: Path of the group that it is in, '' for the outermost.
    name: Name in the group.
    about: Comment above it; '' without one.
  """

  group: str
  name: str
  about: str


def on_page_markdown(markdown: str, **_: Any) -> str:
  """Fills in the generated parts of a page."""
  for mark, make in ((_SETTINGS, settings_tables), (_COMMANDS, command_tables)):
    if mark in markdown:
      markdown = markdown.replace(mark, make())
  return re.sub(
    r'<!-- metrics (\w+) -->', lambda x: metrics_table(x[1]), markdown
  )


def metrics_table(group: str) -> str:
  """Returns a table of the figures of a group, with units and meanings."""
  rows = [
    f'| `{name}` | {unit} | {_cell(about)} |'
    for name, (unit, about) in units.MEANINGS[group].items()
  ]
  return '\n'.join(['| metric | unit | meaning |', '|---|---|---|', *rows])


def settings_tables() -> str:
  """Returns a heading and a table for each group of settings."""
  source = pathlib.Path(default.__file__).read_text(encoding='utf-8')
  tree, lines = ast.parse(source), source.splitlines()
  functions = {x.name: x for x in tree.body if isinstance(x, ast.FunctionDef)}
  parts = []
  for name, (place, make) in _GROUPS.items():
    groups: dict[str, list[Setting]] = {'': []}
    for setting in settings(functions[name], lines):
      groups.setdefault(setting.group, []).append(setting)
    config = make()
    for group, members in groups.items():
      parts.append(_group(f'{place}.{group}'.rstrip('.'), members, config))
  parts += [
    '## Levels above the first',
    '`get_upper_level` returns the settings of `get_level` but for these:',
    changes(default.get_level(), default.get_upper_level()),
    '## The default config',
    '`get_config` returns the settings of `get_settings`, with a top LM of'
    ' `get_top_lm`, but for these:',
    changes(_with_top_lm(default.get_settings()), default.get_config()),
  ]
  return '\n\n'.join(filter(None, parts))


def changes(
  before: ml_collections.ConfigDict, after: ml_collections.ConfigDict
) -> str:
  """Returns a list of the settings of a config that another has not."""
  found = []
  for path in config_file.paths(after):
    old, new = (config_path.get_value(path, x) for x in (before, after))
    if old != new:
      found.append(f'- `{path} = {new!r}`')
  return '\n'.join(found)


def _with_top_lm(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  config.model.top_lm = default.get_top_lm()
  return config


def settings(function: ast.FunctionDef, lines: list[str]) -> Iterator[Setting]:
  """Yields the settings that a function of configs/default.py describes.

  Args:
    function: The function.
    lines: Lines of the file.
  """
  seen = set()
  for statement in function.body:
    if isinstance(statement, ast.Return) and statement.value is not None:
      yield from _members('', statement.value, lines)
    if not isinstance(statement, ast.Assign):
      continue
    path = ast.unparse(statement.targets[0]).partition('.')[2]
    if isinstance(statement.targets[0], ast.Name):
      yield from _members('', statement.value, lines)
    elif path not in seen:
      found = list(_members(path, statement.value, lines))
      about = _comment(statement.lineno, lines)[-1]
      if found and about:
        yield Setting(path, '', about)
      elif not found:
        group, _, name = path.rpartition('.')
        yield Setting(group, name, about)
      yield from found
      seen |= {path, *(f'{x.group}.{x.name}' for x in found)}


def _members(path: str, value: ast.expr, lines: list[str]) -> Iterator[Setting]:
  """Yields the settings in a `dict(...)`, groups in groups included."""
  if not isinstance(value, ast.Call):
    return
  for argument in value.args:
    yield from _members(path, argument, lines)
  for keyword in value.keywords:
    assert keyword.arg is not None, 'a dict of configs/default.py has **'
    line = keyword.value.lineno
    *before, about = _comment(line, lines)
    # A comment above a whole dict in one line is about the group.
    if not lines[line - 1].lstrip().startswith(keyword.arg):
      before, about = [], ''
    yield from (Setting(path, '', paragraph) for paragraph in before)
    inner = f'{path}.{keyword.arg}'.lstrip('.')
    found = list(_members(inner, keyword.value, lines))
    if found:
      yield Setting(inner, '', about)
    else:
      yield Setting(path, keyword.arg, about)
    yield from found


def _comment(line: int, lines: list[str]) -> list[str]:
  """Returns the paragraphs of the comment above a line, at least one."""
  found = ['']
  for text in reversed(lines[: line - 1]):
    text = text.strip()
    if not text.startswith('#'):
      break
    if text == '#':
      found.insert(0, '')
    else:
      found[0] = f'{text.removeprefix("# ")} {found[0]}'.strip()
  return found


def _group(
  place: str, members: list[Setting], config: ml_collections.ConfigDict
) -> str:
  """Returns the section of a group, '' if it has no settings."""
  abouts = [x.about for x in members if not x.name]
  rows = []
  for setting in members:
    value: Any = config
    for key in filter(None, (*setting.group.split('.'), setting.name)):
      value = value[key]
    is_setting = not isinstance(value, ml_collections.ConfigDict)
    is_setting &= (setting.group, setting.name) != ('model', 'levels')
    if setting.name and is_setting:
      about = setting.about
      if not about and setting.group in _STACKS:
        about = 'As in `entropy_model`.'
      rows.append(f'| `{setting.name}` | `{value!r}` | {_cell(about)} |')
    elif setting.name and setting.about:
      rows.append(f'| `{setting.name}` | a group | {_cell(setting.about)} |')
  if not rows:
    return ''
  head = ['| setting | default | meaning and allowed values |', '|---|---|---|']
  return '\n\n'.join([f'## `{place}`', *abouts, '\n'.join([*head, *rows])])


def _cell(text: str) -> str:
  return text.replace('|', '\\|')


def command_tables() -> str:
  """Returns a heading, an example and the arguments of each command."""
  parts = []
  for name in commands._COMMANDS:
    module = commands._module(name)
    parser = argparse.ArgumentParser(prog=name, add_help=False)
    module.add_arguments(parser)
    rows = ['| argument | meaning |', '|---|---|']
    for action in parser._actions:
      flag = ', '.join(action.option_strings) or action.dest.upper()
      if flag == 'WORKDIR':
        flag = 'RUN'
      about = (action.help or '') % {'default': action.default}
      rows.append(f'| `{flag}` | {_cell(re.sub(r"<", "&lt;", about))} |')
    parts += [
      f'## {name}',
      commands._about(module),
      f'    {module.EXAMPLE}',
      '\n'.join(rows),
    ]
  return '\n\n'.join(parts)
