"""Settings of the run in a directory, to go on with it.

    python train.py --config=configs/resume.py:WORKDIR

is what `python train.py --workdir=WORKDIR` does on its own.
"""

import json
import os

import ml_collections

from configs import default


def get_config(workdir: str) -> ml_collections.ConfigDict:
  with open(os.path.join(workdir, 'config.json'), encoding='utf-8') as f:
    values = json.load(f)
  config = default.get_config()
  levels = values['model'].pop('levels')
  typed = []
  for level in levels:
    typed.append(default.get_level())
    typed[-1].update(level)
  top_lm = values['model'].pop('top_lm')
  if top_lm is not None:
    config.model.top_lm = default.get_top_lm()
    config.model.top_lm.update(top_lm)
  config.update(values)
  config.model.levels = tuple(typed)
  return config
