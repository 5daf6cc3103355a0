"""Three levels and a top LM.

    python train.py --config=configs/pyramid_3level.py \
      --config.data.train='texts/*.jsonl'

Hardware: one GPU of 80 GB or a TPU slice. Parameters: 62,095,364. Expect: 777
MB of state, 11.2 TFLOP a step.
"""

import ml_collections

from configs import pyramid_2level


def get_config() -> ml_collections.ConfigDict:
  config = pyramid_2level.get_config(num_levels=3)
  # At 2048 bytes a row, the third level would have a few codes only.
  config.data.sequence_length = 4096
  config.data.batch_size = 16
  # Each level starts when the codes below it are worth learning.
  config.loss.curriculum_steps = 2000
  return config
