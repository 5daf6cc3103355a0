"""256 wide, regular attention by XLA alone, on any platform.

    python train.py --config=configs/regular_xla.py \
      --config.data.train='texts/*.jsonl'

Hardware: one GPU of 40 GB or a TPU slice. Parameters: 40,174,336. Expect: 493
MB of state, 3.13 TFLOP a step.
"""

import ml_collections

from configs import base, regular_pallas


def get_config() -> ml_collections.ConfigDict:
  config = regular_pallas.get_config()
  base.use_xla(config)
  config.data.batch_size = 8
  return config
