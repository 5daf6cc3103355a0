"""Stage 1 of two: a level without a top LM, small enough for a CPU.

    python train.py --config=configs/stage1.py --workdir=runs/stage1

Hardware: 2 CPU cores, about two minutes. Parameters: 244,480. Expect: 3.61 MB
of state, 2.58 GFLOP a step. The entropy model ends near 2.4 bits/byte. Stage 2
is `configs/stage2.py`.
"""

import ml_collections

from configs import default, tiny


def get_config() -> ml_collections.ConfigDict:
  config = default.get_settings()
  tiny.make_small(config.model.levels[0], d_model=64)
  config.max_steps = 300
  config.eval_interval = 300
  config.final_eval_batches = 50
  config.data.batch_size = 8
  return config
