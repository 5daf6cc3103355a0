"""The settings of a run that lies in a directory, to resume it.

    python train.py --config=configs/resume.py:WORKDIR

The command `python train.py --workdir=WORKDIR` does the same.
"""

import json
import os
from typing import Any

import ml_collections

from configs import default


def get_config(workdir: str) -> ml_collections.ConfigDict:
  path = os.path.join(workdir, 'config.json')
  with open(path, encoding='utf-8') as f:
    values = json.load(f)
  model = values['model']
  model['levels'] = tuple(
    _filled(default.get_level(), level, f'{path}: model.levels[{i}].')
    for i, level in enumerate(model['levels'])
  )
  if model['top_lm'] is not None:
    model['top_lm'] = _filled(
      default.get_top_lm(), model['top_lm'], f'{path}: model.top_lm.'
    )
  return _filled(default.get_settings(), values, f'{path}: ')


def _filled(
  config: ml_collections.ConfigDict, values: dict[str, Any], prefix: str
) -> ml_collections.ConfigDict:
  """Replaces every setting of a group by its stored value.

  The settings of `config` have types, which a stored None lacks and flags need.
  """
  for name in config:
    if name not in values:
      raise ValueError(
        f'{prefix}{name}: missing, allowed: all settings of configs/default.py'
      )
  for name, value in values.items():
    if isinstance(config.get(name), ml_collections.ConfigDict):
      _filled(config[name], value, f'{prefix}{name}.')
    else:
      config[name] = value
  return config
