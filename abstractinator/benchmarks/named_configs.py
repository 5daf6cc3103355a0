"""The configs of `configs/`, by name, with some settings changed."""

import argparse
import importlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from abstractinator.config import RunConfig, setting_text

# Takes the directory of a run.
_LEFT_OUT = ('__init__', 'resume')
Setting = tuple[str, Any]


def names() -> list[str]:
  """Of all configs that need no argument."""
  configs = pathlib.Path(__file__).parents[2] / 'configs'
  found = sorted(path.stem for path in configs.glob('*.py'))
  return [name for name in found if name not in _LEFT_OUT]


def load(name: str, settings: Iterable[Setting] = ()) -> RunConfig:
  """The run that a config describes.

  Args:
    name: A file of `configs/`, without its ending.
    settings: Paths and their values.

  Raises:
    ValueError: If there is no such config or setting, or a value is bad.
  """
  if name not in names():
    raise ValueError(f'config: got {name!r}, allowed: {", ".join(names())}')
  values = importlib.import_module(f'configs.{name}').get_config()
  try:
    values.update_from_flattened_dict(dict(settings))
  except (KeyError, TypeError) as error:
    raise ValueError(f'{name}: {error}') from error
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


def setting(text: str) -> Setting:
  """For `argparse`: PATH=VALUE, see `setting_text`."""
  path, is_given, value = text.partition('=')
  if not is_given:
    raise argparse.ArgumentTypeError(f'got {text!r}, allowed: PATH=VALUE')
  return path, setting_text.parse(value)


def add_settings(
  parser: argparse.ArgumentParser, flag: str = '--set', about: str = 'setting'
) -> None:
  """Adds a flag that can be given several times, [] without it."""
  parser.add_argument(
    flag,
    type=setting,
    action='append',
    default=[],
    metavar='PATH=VALUE',
    help=about,
  )
