"""Two levels and a top LM, small, to see codes of codes learned.

    python train.py --config=configs/tiny_2level.py

Hardware: CPU. Parameters: 452,578. Expect: 5.54 MB of state, 4.07 GFLOP a step.
A code of the first level is 2 bytes, one of the second 2 codes: even strides,
because codes that begin at jumps of the entropy, as those of the other configs
do, are the hardest to predict from the ones before.
"""

import ml_collections

from configs import default, tiny


def make_small(level: ml_collections.ConfigDict) -> None:
  tiny.make_small(level, d_model=64)
  level.quantizer.code_dim = 16
  level.quantizer.cosine = True
  level.segmentation.rule = 'stride'
  level.segmentation.threshold = 2.0
  level.segmentation.target_length = None
  level.segmentation.max_length = 8
  level.segmentation.capacity_length = 1.8


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.max_steps = 800
  config.eval_interval = 400
  config.eval_batches = 8
  config.checkpoint_interval = 400
  config.data.batch_size = 8

  bottom, upper = default.get_level(), default.get_upper_level()
  for level in (bottom, upper):
    make_small(level)
  bottom.quantizer.codebook_size = 256
  upper.quantizer.codebook_size = 64
  config.model.levels = (bottom, upper)

  top_lm = default.get_top_lm()
  top_lm.d_model = 64
  top_lm.stack.num_layers = 1
  top_lm.stack.num_heads = 2
  top_lm.stack.ffn_dim = 128
  config.model.top_lm = top_lm
  return config
