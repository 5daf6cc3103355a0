"""Learned codes that carry the text: three stages of residual codes.

    python train.py --config=configs/learned_faithful.py

Hardware: 2 CPU cores, under 15 minutes. Parameters: 944,832. Expect: 9.33 MB of
state, 11.1 GFLOP a step. A segment of about 4.5 bytes has a code of three
stages of 512 entries, 6 bits a byte at most. The expander sees its own segment
and its code alone, and so does the encoder: codes decode side by side, and what
they do not say is lost.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_settings()
  config.max_steps = 2000
  config.data.batch_size = 8
  config.optimizer.kind = 'muon'
  config.optimizer.learning_rate = 1e-2
  (level,) = config.model.levels
  level.encoder_context = 'segment'
  level.quantizer.kind = 'rvq'
  level.quantizer.depth = 3
  level.quantizer.codebook_size = 512
  return config
