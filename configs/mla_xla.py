"""256 wide, wider multi-head latent attention, by XLA alone.

    python train.py --config=configs/mla_xla.py \
      --config.data.train='texts/*.jsonl'

Hardware: one GPU of 40 GB or a TPU slice. Parameters: 39,518,976.
"""

import ml_collections

from configs import base, default, regular_pallas


def get_config() -> ml_collections.ConfigDict:
  attention = base.get_latent(64, 128, 32)
  level = base.resize(
    default.get_level(),
    256,
    8,
    64,
    layers=regular_pallas.LAYERS,
    attention=attention,
  )
  top_lm = base.get_top_lm(256, 12, 8, attention)
  config = base.get_run((level,), top_lm, batch_size=8)
  config.model.implementation = 'xla'
  return config
