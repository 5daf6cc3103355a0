"""256 wide, wider multi-head latent attention, by XLA alone.

    python train.py --config=configs/mla_xla.py \
      --config.data.train='texts/*.jsonl'

Hardware: one GPU of 40 GB or a TPU slice. Parameters: 39,518,976. Expect: 485
MB of state, 3.23 TFLOP a step.
"""

import ml_collections

from configs import base, mla_pallas


def get_config() -> ml_collections.ConfigDict:
  config = mla_pallas.get_config(widths=(64, 128, 32), batch_size=8)
  base.use_xla(config)
  return config
