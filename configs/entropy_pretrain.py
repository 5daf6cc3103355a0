"""The entropy model of another config, trained alone for that config to load.

    python train.py --config=configs/entropy_pretrain.py --workdir=runs/entropy
    python train.py --config=configs/entropy_frozen.py \
      '--config.model.levels[0].load_entropy_model_from=runs/entropy'

Hardware: 2 CPU cores, about a minute each. Parameters: 74,304. Expect: 892 kB
of state, 808 MFLOP a step. It ends near 3.3 bits/byte. The other config is
`entropy_frozen`, or the one that is named after a colon, as in
`--config=configs/entropy_pretrain.py:regular_pallas_entropy_frozen`.
"""

import importlib

import ml_collections


def get_config(name: str = 'entropy_frozen') -> ml_collections.ConfigDict:
  config = importlib.import_module(f'configs.{name}').get_config()
  config.objective = 'entropy_model'
  level = config.model.levels[0]
  level.freeze = level.freeze_entropy_model = False
  config.model.levels = (level,)
  config.model.top_lm = None
  return config
