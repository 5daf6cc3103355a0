"""The entropy model of the first level alone, for other runs to load.

    python train.py --config=configs/entropy_pretrain.py --workdir=runs/entropy

Hardware: 2 CPU cores, about a minute. Then

    python train.py --config=configs/tiny_entropy_frozen.py \\
      '--config.model.levels[0].load_entropy_model_from=runs/entropy'
"""

import ml_collections

from configs import default, tiny


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.objective = 'entropy_model'
  config.max_steps = 300
  config.data.batch_size = 8
  tiny.make_small(config.model.levels[0])
  return config
