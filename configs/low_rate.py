"""Codes of half a bit a byte: long segments, few codes, a strong entropy model.

    python train.py --config=configs/low_rate.py

Hardware: 2 CPU cores, under 10 minutes. Parameters: 1,963,904. Expect: 16.6 MB
of state, 18.6 GFLOP a step. Segments have about 8 bytes and one of 16 codes.
"""

import ml_collections

from configs import learned


def get_config() -> ml_collections.ConfigDict:
  config = learned.get_config()
  (level,) = config.model.levels
  level.entropy_model.num_layers = 6
  level.segmentation.target_length = 8.0
  level.segmentation.max_length = 32
  level.segmentation.capacity_length = 5.0
  level.quantizer.codebook_size = 16
  return config
