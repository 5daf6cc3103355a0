"""Codes that are learned: 64 of them, by vector quantization.

    python train.py --config=configs/learned.py

Hardware: 2 CPU cores, under 10 minutes. Parameters: 1,728,512. Expect: 14.7 MB
of state, 16.4 GFLOP a step. It differs from the main job in its codes, and its
top LM does not build on the entropy model. Entries of the codebook are moving
averages of the segments that they stand for, and 64 of them keep the kinds of
words, not the words. The dictionary of the main job is the bar for it.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  (level,) = config.model.levels
  # Few codes, which are cheap, and simple enough to be told by the bytes soon.
  level.quantizer.kind = 'vq'
  level.quantizer.codebook_size = 64
  level.quantizer.rate_temperature = 0.2
  # What the entropy model knows of the next byte says little about such codes.
  config.model.top_lm.base = 'none'
  return config
