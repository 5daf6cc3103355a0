"""Codes that are a dictionary: the commonest segments own one each.

    python train.py --config=configs/dictionary.py

Hardware: 2 CPU cores, about 10 minutes. Parameters: 2,372,608. Expect:
22.7 MB of state, 18.5 GFLOP a step. The bar for every learned quantizer: which
segment has which code is counted, not learned, and a known segment comes back
from its code exactly.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  (level,) = config.model.levels
  level.quantizer.kind = 'dictionary'
  level.quantizer.codebook_size = 4096
  return config
