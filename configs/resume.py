"""The settings of a run that lies in a directory, to resume it.

    python train.py --config=configs/resume.py:WORKDIR

The command `python train.py --workdir=WORKDIR` does the same.
"""

import os
from typing import Any

import ml_collections

from abstractinator.runs import workdir as workdirs
from configs import default


def get_config(workdir: str) -> ml_collections.ConfigDict:
  workdir = os.path.expanduser(workdir)
  stored = workdirs.stored_config(workdir)
  if stored is None:
    raise ValueError(f'{workdir}: has no config.json, allowed: a run')
  values = stored.to_dict()
  model = values['model']
  model['levels'] = tuple(
    _filled(default.get_level(), level) for level in model['levels']
  )
  if model['top_lm'] is not None:
    model['top_lm'] = _filled(default.get_top_lm(), model['top_lm'])
  return _filled(default.get_settings(), values)


def _filled(
  config: ml_collections.ConfigDict, values: dict[str, Any]
) -> ml_collections.ConfigDict:
  """Replaces every setting of a group by its stored value.

  The settings of `config` have types, which a stored None lacks and flags need.
  """
  for name, value in values.items():
    if isinstance(config.get(name), ml_collections.ConfigDict):
      _filled(config[name], value)
    else:
      config[name] = value
  return config
