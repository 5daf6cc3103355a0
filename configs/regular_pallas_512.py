"""512 wide, with tied logits, a Gaussian head and a wide top LM.

    python train.py --config=configs/regular_pallas_512.py \
      --config.data.train='texts/*.jsonl'

Hardware: a TPU slice or several GPUs of 80 GB. Parameters: 156,369,920. Expect:
1.89 GB of state, 196 TFLOP a step.
"""

import ml_collections

from configs import base, default


def get_level() -> ml_collections.ConfigDict:
  level = base.resize(default.get_level(), 512, 16, 128, layers=(12, 4, 6))
  level.entropy_heads.update(
    tie_to_embedding=True,
    gaussian_components=1,
    gaussian_log_variance_min=-6.0,
    gaussian_log_variance_max=6.0,
  )
  return level


def get_config(has_top_lm: bool = True) -> ml_collections.ConfigDict:
  config = base.get_run(
    (get_level(),),
    base.get_top_lm(512, 12, 16) if has_top_lm else None,
    batch_size=64,
    sequence_length=4096,
    learning_rate=1e-4,
  )
  config.loss.gaussian = 0.25
  return config
