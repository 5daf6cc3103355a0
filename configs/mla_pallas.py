"""256 wide, multi-head latent attention, by the ops that suit the platform.

    python train.py --config=configs/mla_pallas.py \
      --config.data.train='texts/*.jsonl'

Hardware: one GPU of 80 GB or a TPU slice. Parameters: 36,324,096. Expect: 447
MB of state, 5.53 TFLOP a step.
"""

import ml_collections

from configs import base, default, regular_pallas


def get_config(
  widths: tuple[int, int, int] = (16, 64, 16), batch_size: int = 16
) -> ml_collections.ConfigDict:
  attention = base.get_latent(*widths)
  level = base.resize(
    default.get_level(),
    256,
    8,
    64,
    layers=regular_pallas.LAYERS,
    attention=attention,
  )
  top_lm = base.get_top_lm(256, 12, 8, attention)
  return base.get_run((level,), top_lm, batch_size=batch_size)
