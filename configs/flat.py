"""A plain byte language model, without codes: what a hierarchy is measured by.

    python train.py --config=configs/flat.py --config.data.train=TRAIN \
      --config.data.validation=HELD_OUT

Hardware: 2 CPU cores, about 6 minutes. Parameters: 919,424. Expect: 7.63 MB of
state, 6.24 GFLOP a step. On the last tenth of tiny Shakespeare, trained on the
rest, it ends at 2.11 bits/byte.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_settings()
  config.objective = 'entropy_model'
  # The steps decide, not the size of the corpus.
  config.num_epochs = 1000.0
  config.max_steps = 2600
  config.eval_interval = 650
  config.final_eval_batches = None
  # Few bytes a step: a run of minutes learns most from many steps.
  config.data.batch_size = 4

  config.optimizer.kind = 'muon'
  config.optimizer.learning_rate = 8e-3
  config.optimizer.final_fraction = 0.02
  config.optimizer.weight_decay = 0.1

  (level,) = config.model.levels
  level.d_model = 128
  for part in (level.entropy_model, level.encoder, level.expander):
    part.num_heads = 4
  level.pooling.num_heads = 4
  level.entropy_model.num_layers = 4
  level.entropy_model.window = 64
  level.entropy_model.ffn_dim = 384
  return config
