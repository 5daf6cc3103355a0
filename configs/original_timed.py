"""One level of the size at which the PyTorch original was timed.

    python train.py --config=configs/original_timed.py

Hardware: 2 CPU cores, half a second a step. Parameters: 2,628,864. Expect: 32.9
MB of state, 65.1 GFLOP a step. It serves comparisons of speed: `python -m
abstractinator.benchmarks.step` times its training step.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_settings()
  config.data.batch_size = 8
  config.data.sequence_length = 512

  (level,) = config.model.levels
  level.d_model = 128
  for part in (level.entropy_model, level.encoder, level.expander):
    part.num_heads = 4
    part.window = 64
    part.ffn_dim = 512
  level.segmentation.rule = 'entropy_delta'
  level.segmentation.threshold = 0.2885
  level.segmentation.capacity_length = 2.0
  level.pooling.num_heads = 4
  level.quantizer.code_dim = None
  level.quantizer.codebook_size = 512
  level.expander.num_layers = 4
  level.expander.lookback = 1
  return config
