"""A wide top LM over a frozen level of `regular_pallas_entropy_frozen`.

    python train.py --config=configs/frozen_level0.py \
      --load_base_from=RUN --config.data.train='texts/*.jsonl'

Hardware: one GPU of 80 GB or a TPU slice. Parameters: 74,846,720. Expect: 747
MB of state, 34.7 TFLOP a step.
"""

import ml_collections

from configs import base, regular_pallas_entropy_frozen


def get_config() -> ml_collections.ConfigDict:
  config = regular_pallas_entropy_frozen.get_config()
  (level,) = config.model.levels
  level.freeze_entropy_model = False
  level.freeze = True
  config.model.top_lm = base.get_top_lm(512, 12, 16)
  config.model.top_lm.expand = True
  return config
