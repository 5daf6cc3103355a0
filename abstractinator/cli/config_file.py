"""Config files by path or name, and overrides of their settings.

A config file is a Python file whose `get_config()` returns a ConfigDict. It is
named by `SOURCE` or `SOURCE:ARGUMENT`, with an argument of `get_config`; SOURCE
is a path that ends in `.py`, or the name of a file of `configs/`. An override
is `PATH=VALUE`, such as `model.levels[0].d_model=64`; PATH=None unsets it.

`train` calls `read` with its flags; other commands call `load`.
"""

import argparse
import difflib
import json
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from abstractinator.config import RunConfig

_PACKAGE = pathlib.Path(__file__).parents[1]
_INSTALLED = _PACKAGE / 'named' / 'configs'
# A wheel holds configs/ in the package; in a checkout it lies beside it.
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / 'configs'
# This config has no settings of its own: it needs the directory of a run.
_RESUME = 'resume'
_TOP_LM = 'model.top_lm'
_DIRECTORIES = ('load_base_from', 'load_entropy_model_from')


def names() -> list[str]:
  """Returns the names of the configs that need no argument, sorted."""
  found = sorted(path.stem for path in CONFIGS.glob('*.py'))
  return [name for name in found if name != _RESUME]


def load(source: str, overrides: Sequence[str] = ()) -> RunConfig:
  """Reads the config of a run.

  Args:
    source: Path or name of a config file, see above.
    overrides: `PATH=VALUE` of settings that get another value, in order.

  Returns:
    The config.

  Raises:
    ValueError: If there is no such file or setting, or a value is not allowed.
  """
  for text in overrides:
    if '=' not in text:
      raise ValueError(
        f'{text!r}: got no value, allowed: PATH=VALUE, such as'
        ' data.batch_size=512'
      )
  return run_config(read(source, [f'--config.{text}' for text in overrides]))


def run_config(config: ConfigDict) -> RunConfig:
  """Returns the settings of a ConfigDict as checked dataclasses.

  Raises:
    ValueError: If a setting is missing, unknown or not allowed.
  """
  values = json.loads(config.to_json_best_effort())
  return RunConfig.from_dict(_at_home(values))


def _at_home(values: Any) -> Any:
  """Replaces ~ by the home directory in settings that name directories."""
  if isinstance(values, list):
    return [_at_home(value) for value in values]
  if not isinstance(values, dict):
    return values
  return {
    name: os.path.expanduser(value)
    if name in _DIRECTORIES and isinstance(value, str)
    else _at_home(value)
    for name, value in values.items()
  }


def add_overrides(
  parser: argparse.ArgumentParser,
  flag: str = '--set',
  about: str = 'another value of a setting, such as data.batch_size=512;'
  ' default: none',
) -> None:
  """Adds a flag of overrides to a parser; it may be given several times.

  Args:
    parser: Parser that gets the flag; its value is a list, [] by default.
    flag: Name of the flag.
    about: Help text.
  """
  parser.add_argument(
    flag, action='append', default=[], metavar='PATH=VALUE', help=about
  )


def read(
  source: str, flags_of_settings: Sequence[str], others: Iterable[str] = ()
) -> ConfigDict:
  """Runs a config file and gives settings other values.

  `config_flags` does the parsing; it knows the type of each setting. Added are
  the value None, which the parser of a type refuses, configs by name, and near
  misses of unknown settings.

  Args:
    source: Path or name of a config file, see above.
    flags_of_settings: Arguments of a command line, `--config.PATH=VALUE` or
      `--config.PATH` and its value.
    others: Other flags of the command, for what a wrong one may mean.

  Returns:
    The settings.

  Raises:
    ValueError: If the config file cannot be read, a setting or flag is unknown,
      or a value is of another type. The message is one line.
  """
  path, config = _run_file(source)
  known = list(paths(config))
  argv, unset = ['', f'--config={path}'], []
  for arg in flags_of_settings:
    override = re.match(r'--?(no)?config\.([^=]+)(=None$)?', arg)
    if override:
      _require_known(override[2], known, is_none=bool(override[3]))
    elif arg.startswith('-'):
      raise ValueError(_unknown_flag(arg, known, others))
    if override and override[3]:
      unset.append(override[2])
    else:
      argv.append(arg)
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    _, *rest = values(argv)
    found = values['config'].value
    for setting in unset:
      config_path.set_value(setting, found, None)
  except (flags.Error, IndexError, TypeError, ValueError) as error:
    raise ValueError(_refusal(str(error), config)) from error
  if rest:
    raise ValueError(f'{rest[0]}: not a flag, allowed: --config.PATH=VALUE')
  return found


# Kinds of values, by the types of settings.
_KINDS = {
  bool: 'True or False',
  int: 'an integer',
  float: 'a number',
  tuple: 'a tuple, such as (8, 5, 5)',
}


def _refusal(text: str, config: ConfigDict) -> str:
  """Returns one line for an error of `config_flags` about a value."""
  line = text.split('\n')[0].removeprefix('flag --config.')
  given = re.match(r'([^=:\s]+)=(.*?): ', line)
  if not given:
    return line
  kind = config_path.get_type(given[1], config)
  return (
    f'{given[1]}: got {given[2]!r}, allowed: {_KINDS.get(kind, kind.__name__)}'
  )


def _unknown_flag(arg: str, known: Sequence[str], others: Iterable[str]) -> str:
  """Returns one line for a flag that is none, with what it may mean."""
  flag, _, _ = arg.partition('=')
  # The first setting of a name stands for all.
  named = {path.split('.')[-1]: path for path in reversed(known)}
  meant = {f'--{name}': f'--config.{path}' for name, path in named.items()}
  meant |= {f'--{path}': f'--config.{path}' for path in known}
  meant |= {other: other for other in others}
  near = difflib.get_close_matches(flag, meant, n=1, cutoff=0.75)
  found = ', '.join(meant[name] for name in near)
  return f'{flag}: unknown flag, allowed: {found or "those of --help"}'


def paths(config: ConfigDict, prefix: str = '') -> Iterator[str]:
  """Yields the path of every setting of a config, in its order.

  Args:
    config: Group of settings.
    prefix: Path of the group in the whole config; ends in '.' unless empty.
  """
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from paths(value, f'{prefix}{name}.')
    elif (
      isinstance(value, tuple) and value and isinstance(value[0], ConfigDict)
    ):
      for index, item in enumerate(value):
        yield from paths(item, f'{prefix}{name}[{index}].')
    else:
      yield f'{prefix}{name}'


def _require_known(path: str, known: Sequence[str], *, is_none: bool) -> None:
  """Raises ValueError unless a setting exists, or a group becomes None."""
  below = [name for name in known if name.startswith((f'{path}.', f'{path}['))]
  if is_none and (below or path == _TOP_LM):
    return
  if path in known and path != _TOP_LM:
    return
  if path.startswith(_TOP_LM) and _TOP_LM in known:
    raise ValueError(
      f'{path}: unknown setting, since this config has no top LM, allowed: a'
      ' config with one, such as tiny_2level, or a file of your own with'
      ' config.model.top_lm = default.get_top_lm()'
    )
  near = below[:3] or difflib.get_close_matches(path, known) or known[:3]
  raise ValueError(f'{path}: unknown setting, allowed: {", ".join(near)}, ...')


def _run_file(source: str) -> tuple[str, ConfigDict]:
  """Runs a config file.

  Args:
    source: Path or name, see above.

  Returns:
    The path, with `:ARGUMENT` if there is one, and the config.

  Raises:
    ValueError: If there is no such file, or it has no config.
  """
  name, colon, argument = source.partition(':')
  path = pathlib.Path(name).expanduser()
  if path.suffix != '.py':
    path = CONFIGS / f'{name}.py'
  if not path.is_file():
    near = difflib.get_close_matches(path.stem, names(), n=1)
    meant = [str(path.with_name(f'{near[0]}.py'))] if near else []
    if path.parent == CONFIGS:
      meant = near
    allowed = meant or ['a Python file', *names()]
    raise ValueError(f'config: got {name!r}, allowed: {", ".join(allowed)}')
  # Config files import each other, and `configs` has no __init__.py, so that a
  # directory of that name elsewhere extends it.
  for folder in (CONFIGS, path.absolute().parent):
    if str(folder.parent) not in sys.path:
      sys.path.insert(0, str(folder.parent))
  try:
    get_config = runpy.run_path(str(path))['get_config']
    config = get_config(*([argument] if colon else []))
    if not isinstance(config, ConfigDict):
      raise TypeError(f'get_config() returned {type(config).__name__}')
  # The file is the user's own code, and can raise anything.
  except Exception as error:
    text = ' '.join(str(error).split())
    if name == _RESUME:
      # The fault lies in the run, which the message names.
      raise ValueError(text) from error
    raise ValueError(
      f'{path}: {type(error).__name__}: {text}, allowed: a Python file whose'
      ' get_config() returns a ConfigDict'
    ) from error
  return f'{path}{colon}{argument}', config
