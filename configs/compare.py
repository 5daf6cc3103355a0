"""One cell of the comparison of segmentation rules, quantizers and contexts.

    python train.py --config=configs/compare.py:entropy_delta,vq,segment

Hardware: 2 CPU cores, about a minute. Parameters: 449,664. Expect: 6.07 MB of
state, 5.33 GFLOP a step. A cell is named by a segmentation rule, a quantizer
(vq, rvq, fsq) and the context of the expander (segment, window). All cells have
the same widths, steps and data, 4.5 bytes to a segment, and about 1024 codes.
`docs/results.md` has the results of all cells. `python -m
abstractinator.benchmarks.compare compare:CELL compare:CELL` trains cells, each
beside a flat model.
"""

import ml_collections

from configs import default

# Initial threshold of each rule, near the value that the calibration reaches.
THRESHOLDS = {
  'entropy_delta': 0.3,
  'entropy_threshold': 2.0,
  'equal_information': 8.0,
  'stride': 4.5,
  'space': 0.0,
}
QUANTIZERS = {
  'vq': dict(kind='vq', codebook_size=1024),
  'rvq': dict(kind='rvq', codebook_size=32, depth=2),
  'fsq': dict(kind='fsq', levels=(8, 8, 4, 4)),
}


def get_config(
  cell: str = 'entropy_delta,vq,segment',
) -> ml_collections.ConfigDict:
  rule, quantizer, context = [*cell.split(','), '', ''][:3]
  for value, allowed in ((rule, THRESHOLDS), (quantizer, QUANTIZERS)):
    if value not in allowed:
      raise ValueError(
        f'{cell!r}: got {value!r}, allowed: {", ".join(allowed)}; cells are'
        ' RULE,QUANTIZER,CONTEXT'
      )
  config = default.get_settings()
  config.max_steps = 300
  config.eval_interval = 300
  config.final_eval_batches = 200
  config.checkpoint_interval = 300
  config.data.batch_size = 8

  (level,) = config.model.levels
  level.d_model = 64
  for part in (level.entropy_model, level.encoder, level.expander):
    part.num_heads = 2
    part.ffn_dim = 192
  level.pooling.num_heads = 2
  level.segmentation.rule = rule
  level.segmentation.threshold = THRESHOLDS[rule]
  level.expander.context = context
  for name, value in QUANTIZERS[quantizer].items():
    level.quantizer[name] = value
  return config
