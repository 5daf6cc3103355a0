"""Stage 2 of two: a top LM over the codes of the frozen level of stage 1.

    python train.py --config=configs/stage2.py --load_base_from=runs/stage1

Hardware: 2 CPU cores, about two minutes. Parameters: 589,216. Expect: 5.79 MB
of state, 5.23 GFLOP a step. The top LM ends near 1.8 bits/byte of codes; the
metrics of the level stay those of stage 1. The level comes from a run of
`configs/stage1.py`. The top LM also learns from the loss of the frozen
expander, which decodes the predicted codes to bytes.
"""

import ml_collections

from configs import default, stage1


def get_config() -> ml_collections.ConfigDict:
  config = stage1.get_config()
  config.model.levels[0].freeze = True
  config.model.top_lm = default.get_top_lm()
  config.model.top_lm.expand = True
  return config
