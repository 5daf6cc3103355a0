"""A small level cut by an entropy model that was trained before.

    python train.py --config=configs/entropy_pretrain.py --workdir=runs/entropy
    python train.py --config=configs/entropy_frozen.py \
      '--config.model.levels[0].load_entropy_model_from=runs/entropy'

Hardware: 2 CPU cores, about a minute each. Parameters: 244,480. Expect: 3.02 MB
of state, 2.58 GFLOP a step. The bits/byte of the entropy model stay those of
the run it was loaded from.
"""

import ml_collections

from configs import base, stage1


def get_config() -> ml_collections.ConfigDict:
  config = stage1.get_config()
  (level,) = config.model.levels
  base.freeze_entropy_model(level)
  return config
