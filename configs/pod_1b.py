"""A billion parameters for a pod: two levels and a wide top LM.

    abstractinator plan --config=configs/pod_1b.py --topology=v5e-256 \
      --mesh=1,256,1
    python train.py --config=configs/pod_1b.py \
      --config.data.train='texts/*.parquet'

Hardware: a TPU slice of 256 chips. Parameters: 1,006,423,426. Expect: 12.1 GB
of state, 1.75 PFLOP a step. Each chip has one row of 4096 bytes. The blocks of
a stack are compiled once, as a loop, and computed a second time for gradients.
Compiled for 256 chips of v5e, the run takes 1.06 of the 16 GB of each, and at
least 100 ms a step.
"""

import ml_collections

from configs import base, default


def get_config() -> ml_collections.ConfigDict:
  layers = (2, 2, 4)
  bottom = base.resize(default.get_level(), 1024, 16, 128, layers=layers)
  upper = base.resize(default.get_upper_level(), 1024, 16, 128, layers=layers)
  bottom.segmentation.target_length = 6.0
  bottom.segmentation.capacity_length = 4.0
  config = base.get_run(
    (bottom, upper),
    base.get_top_lm(2048, 10, 16),
    batch_size=256,
    sequence_length=4096,
    learning_rate=2e-4,
  )
  config.model.implementation.update(remat='blocks', scan_layers=True)
  config.mesh.update(data=1, fsdp=-1)
  return config
