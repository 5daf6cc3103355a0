"""Codes of less than half a bit a byte: the 255 commonest segments.

    python train.py --config=configs/low_rate.py

Hardware: 2 CPU cores, under 10 minutes. Parameters: 1,770,496. Expect: 15.2 MB
of state, 16.5 GFLOP a step. It is the main job with fewer codes.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  (level,) = config.model.levels
  level.quantizer.codebook_size = 256
  return config
