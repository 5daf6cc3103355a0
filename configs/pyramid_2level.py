"""Two levels, words of bytes and phrases of words, and a top LM.

    python train.py --config=configs/pyramid_2level.py \
      --config.data.train='texts/*.jsonl'

Hardware: one GPU of 80 GB or a TPU slice. Parameters: 47,987,586. Expect: 597
MB of state, 10.7 TFLOP a step.
"""

import ml_collections

from configs import base, default


def get_levels(number: int) -> tuple[ml_collections.ConfigDict, ...]:
  """Levels of width 256, bottom first."""
  bottom = base.resize(default.get_level(), 256, 8, 64, layers=(6, 4, 6))
  return (
    bottom,
    *(
      base.resize(default.get_upper_level(), 256, 8, 32, layers=(4, 4, 4))
      for _ in range(number - 1)
    ),
  )


def get_config(num_levels: int = 2) -> ml_collections.ConfigDict:
  return base.get_run(
    get_levels(num_levels), base.get_top_lm(256, 12, 8), batch_size=32
  )
