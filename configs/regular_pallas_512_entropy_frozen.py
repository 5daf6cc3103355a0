"""512 wide, segments cut by an entropy model that was trained before.

    python train.py \
      --config=configs/entropy_pretrain.py:regular_pallas_512_entropy_frozen \
      --config.data.train='texts/*.jsonl' --workdir=runs/entropy_512
    python train.py --config=configs/regular_pallas_512_entropy_frozen.py \
      --config.data.train='texts/*.jsonl' \
      '--config.model.levels[0].load_entropy_model_from=runs/entropy_512'

Hardware: a TPU slice or several GPUs of 80 GB. Parameters: 101,568,000. Expect:
819 MB of state, 162 TFLOP a step.
"""

import ml_collections

from configs import base, regular_pallas_512


def get_config() -> ml_collections.ConfigDict:
  config = regular_pallas_512.get_config(has_top_lm=False)
  (level,) = config.model.levels
  base.freeze_entropy_model(level)
  return config
