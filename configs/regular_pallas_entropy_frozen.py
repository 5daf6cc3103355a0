"""256 wide, segments cut by an entropy model that was trained before.

    python train.py \
      --config=configs/entropy_pretrain.py:regular_pallas_entropy_frozen \
      --config.data.train='texts/*.jsonl' --workdir=runs/entropy_256
    python train.py --config=configs/regular_pallas_entropy_frozen.py \
      --config.data.train='texts/*.jsonl' \
      '--config.model.levels[0].load_entropy_model_from=runs/entropy_256'

Hardware: one GPU of 80 GB or a TPU slice. Parameters: 20,175,872. Expect: 151
MB of state, 16.4 TFLOP a step.
"""

import ml_collections

from configs import base, default


def get_config() -> ml_collections.ConfigDict:
  level = base.resize(default.get_level(), 256, 8, 64, layers=(12, 4, 2))
  base.freeze_entropy_model(level)
  return base.get_run((level,), None, batch_size=64)
