"""Two small levels and a top LM, which learn one after the other.

    python train.py --config=configs/tiny_2level.py

Hardware: 2 CPU cores, under ten minutes. Parameters: 748,066. Expect: 9.04 MB
of state, 7.83 GFLOP a step. The first level learns from bytes, then the second
from the codes of the first, then the top LM from the codes of the second. A
part stops when the next one starts, so that codes keep their meaning. A code of
the first level stands for 1.5 bytes, one of the second for 1.34 codes. Segments
have even strides because codes of segments that begin at jumps of the entropy,
as in other configs, are the hardest to predict from the codes before them. The
cross-entropy of the top LM depends on the codes that the levels learn: it ends
22% below their unigram entropy, and 27% with `--config.seed=1`.
"""

import ml_collections

from configs import default, tiny


def make_small(level: ml_collections.ConfigDict, stride: float) -> None:
  """Gives a level small stacks, and segments of `stride` ids."""
  tiny.make_small(level, d_model=64)
  level.quantizer.code_dim = 16
  level.quantizer.cosine = True
  level.encoder.window = 1
  level.segmentation.rule = 'stride'
  level.segmentation.threshold = stride
  level.segmentation.target_length = None
  level.segmentation.max_length = 8
  level.segmentation.capacity_length = 0.93 * stride


def get_config() -> ml_collections.ConfigDict:
  config = default.get_settings()
  config.max_steps = 3000
  config.eval_interval = 700
  config.eval_batches = 8
  config.checkpoint_interval = 500
  config.data.batch_size = 8

  bottom, upper = default.get_level(), default.get_upper_level()
  make_small(bottom, stride=1.5)
  make_small(upper, stride=1.34)
  bottom.quantizer.codebook_size = 128
  upper.quantizer.codebook_size = 64
  config.model.levels = (bottom, upper)
  config.loss.curriculum_steps = 700
  config.loss.curriculum_stops = True

  top_lm = default.get_top_lm()
  top_lm.d_model = 128
  top_lm.stack.num_layers = 2
  top_lm.stack.num_heads = 4
  top_lm.stack.ffn_dim = 256
  config.model.top_lm = top_lm
  return config
