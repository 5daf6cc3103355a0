"""A level that trains in seconds, to check that every part works.

    python train.py --config=configs/tiny.py

Hardware: 2 CPU cores, under a minute, compilation included. Parameters: 82,304.
Expect: 1.01 MB of state, 396 MFLOP a step. The trained level is of no use.
"""

import ml_collections

from configs import default


def make_small(level: ml_collections.ConfigDict, d_model: int) -> None:
  """Gives each stack one block, two heads and an FFN of twice the width."""
  level.d_model = d_model
  for part in (level.entropy_model, level.encoder, level.expander):
    part.num_layers = 1
    part.num_heads = 2
    part.ffn_dim = 2 * d_model
  level.pooling.num_heads = 2


def get_config() -> ml_collections.ConfigDict:
  config = default.get_settings()
  config.max_steps = 60
  config.log_interval = 10
  config.eval_interval = 30
  config.eval_batches = 4
  config.final_eval_batches = 20
  config.checkpoint_interval = 30
  config.optimizer.warmup_steps = 10

  config.data.sequence_length = 128
  config.data.batch_size = 8

  (level,) = config.model.levels
  make_small(level, d_model=32)
  level.quantizer.codebook_size = 64
  level.quantizer.code_dim = 16
  return config
