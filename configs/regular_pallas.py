"""256 wide, regular attention, a top LM, by the ops that suit the platform.

    python train.py --config=configs/regular_pallas.py \
      --config.data.train='texts/*.jsonl'

Hardware: one GPU of 80 GB or a TPU slice. Parameters: 40,174,336. Expect: 493
MB of state, 25.1 TFLOP a step.
"""

import ml_collections

from configs import base, default

# Blocks of the entropy model, the encoder and the expander.
LAYERS = (12, 4, 6)


def get_config() -> ml_collections.ConfigDict:
  level = base.resize(default.get_level(), 256, 8, 64, layers=LAYERS)
  return base.get_run((level,), base.get_top_lm(256, 12, 8), batch_size=64)
