"""Config files by path or name, and overrides of their settings.

A config file is a Python file whose `get_config()` returns a ConfigDict. It is
named by `SOURCE` or `SOURCE:ARGUMENT`, with an argument of `get_config`; SOURCE
is a path that ends in `.py`, or the name of a file of `configs/`. An override
is `PATH=VALUE`, such as `model.levels[0].d_model=64`; PATH=None unsets it.

`train.py` parses its command line with `parse`; other commands call `load`.
"""

import argparse
import difflib
import json
import pathlib
import re
import runpy
import sys
from collections.abc import Iterator, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from abstractinator.config import RunConfig

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
# This config has no settings of its own: it needs the directory of a run.
_RESUME = 'resume'


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
  argv = ['', f'--config={source}', *(f'--config.{text}' for text in overrides)]
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  parse(argv, values)
  return run_config(config.value)


def run_config(config: ml_collections.ConfigDict) -> RunConfig:
  """Returns the settings of a ConfigDict as checked dataclasses.

  Raises:
    ValueError: If a setting is missing, unknown or not allowed.
  """
  return RunConfig.from_dict(json.loads(config.to_json_best_effort()))


def add_overrides(
  parser: argparse.ArgumentParser,
  flag: str = '--set',
  about: str = 'another value of a setting, such as data.batch_size=512',
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


def parse(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
  """Parses a command line with a config file and overrides of its settings.

  `config_flags` does the parsing; it knows the type of each setting. Added are
  the value None, which the parser of a type refuses, configs by name, and near
  misses of unknown settings.

  Args:
    argv: Name of the program, `--config=SOURCE`, then flags in any order, of
      which `--config.PATH=VALUE` are overrides.
    values: Flags to set; `config` is one of `config_flags.DEFINE_config_file`.

  Returns:
    The name of the program and the arguments that are not flags.

  Raises:
    ValueError: If the config file cannot be read, a setting or flag is unknown,
      or a value is of another type. The message is one line.
  """
  program, source, *rest = argv
  path, config = _read(source.removeprefix('--config='))
  known = list(paths(config))
  kept, unset = [], []
  for arg in rest:
    override = re.match(r'--?(no)?config\.([^=]+)(=None$)?', arg)
    if override:
      _require_known(override[2], known, is_none=bool(override[3]))
    if override and override[3]:
      unset.append(override[2])
    else:
      kept.append(arg)
  try:
    positional = values([program, f'--config={path}', *kept])
    for setting in unset:
      config_path.set_value(setting, values['config'].value, None)
  except (flags.Error, IndexError, TypeError, ValueError) as error:
    line = str(error).split('\n')[0]
    raise ValueError(line.removeprefix('flag --config.')) from error
  return positional


def paths(config: ml_collections.ConfigDict, prefix: str = '') -> Iterator[str]:
  """Yields the path of every setting of a config, in its order.

  Args:
    config: Group of settings.
    prefix: Path of the group in the whole config; ends in '.' unless empty.
  """
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from paths(value, f'{prefix}{name}.')
    elif (
      isinstance(value, tuple)
      and value
      and isinstance(value[0], ml_collections.ConfigDict)
    ):
      for index, item in enumerate(value):
        yield from paths(item, f'{prefix}{name}[{index}].')
    else:
      yield f'{prefix}{name}'


def _require_known(path: str, known: Sequence[str], *, is_none: bool) -> None:
  """Raises ValueError unless a setting exists, or a group becomes None."""
  below = [name for name in known if name.startswith((f'{path}.', f'{path}['))]
  if path not in known and not (below and is_none):
    near = below[:3] or difflib.get_close_matches(path, known) or known[:3]
    raise ValueError(
      f'{path}: unknown setting, allowed: {", ".join(near)}, ...'
    )


def _read(source: str) -> tuple[str, ml_collections.ConfigDict]:
  """Runs a config file.

  Args:
    source: Path or name, see above.

  Returns:
    The path, with `:ARGUMENT` if there is one, and the config.

  Raises:
    ValueError: If there is no such file, or it has no config.
  """
  name, colon, argument = source.partition(':')
  path = pathlib.Path(name)
  if path.suffix != '.py':
    path = CONFIGS / f'{name}.py'
  if not path.is_file():
    raise ValueError(
      f'config: got {name!r}, allowed: a Python file, {", ".join(names())}'
    )
  # Config files import each other from the directory above theirs.
  root = str(path.absolute().parents[1])
  if root not in sys.path:
    sys.path.insert(0, root)
  try:
    get_config = runpy.run_path(str(path))['get_config']
    config = get_config(*([argument] if colon else []))
    if not isinstance(config, ml_collections.ConfigDict):
      raise TypeError(f'get_config() returned {type(config).__name__}')
  # The file is the user's own code, and can raise anything.
  except Exception as error:
    text = ' '.join(str(error).split())
    raise ValueError(
      f'{path}: {type(error).__name__}: {text}, allowed: a Python file whose'
      ' get_config() returns a ConfigDict'
    ) from error
  return f'{path}{colon}{argument}', config
