"""The original's default sizes: one wide level and a deep top LM.

    python train.py --config=configs/base.py --config.data.train='texts/*.jsonl'

Hardware: one GPU of 80 GB or a TPU slice. Parameters: 147,918,848. Expect: 1.79
GB of state, 10.5 TFLOP a step. The functions here are shared by the other
configs of such sizes.
"""

import ml_collections

from configs import default


def get_latent(
  kv_dim: int, query_dim: int, retrieval_dim: int
) -> ml_collections.ConfigDict:
  """Multi-head latent attention of the given widths."""
  attention = default.get_attention()
  attention.update(
    form='mla',
    kv_dim=kv_dim,
    query_dim=query_dim,
    retrieval_dim=retrieval_dim,
  )
  return attention


def resize(
  level: ml_collections.ConfigDict,
  d_model: int,
  num_heads: int,
  window: int,
  *,
  layers: tuple[int, int, int],
  attention: ml_collections.ConfigDict | None = None,
) -> ml_collections.ConfigDict:
  """Gives a level the sizes of an experiment.

  Args:
    level: Level from `default.get_level` or `default.get_upper_level`; changed
      in place.
    d_model: Model width D.
    num_heads: Attention heads H of each stack.
    window: Window of the entropy model, the encoder and the expander, in ids.
    layers: Number of blocks of the entropy model, the encoder and the expander.
    attention: Attention of each stack; regular if None.

  Returns:
    The level.
  """
  level.d_model = d_model
  parts = (level.entropy_model, level.encoder, level.expander)
  for part, num_layers in zip(parts, layers, strict=True):
    part.num_layers = num_layers
    part.num_heads = num_heads
    part.ffn_dim = 4 * d_model
    part.window = window
    part.attention = attention or default.get_attention()
  level.pooling.num_heads = num_heads
  level.segmentation.max_length = 32
  level.quantizer.codebook_size = 8192
  # The width that the original has with this number of codes.
  level.quantizer.code_dim = 64
  level.quantizer.decay = 0.99
  level.quantizer.reset_interval_steps = 100
  level.quantizer.reset_after_steps = 200
  level.expander.lookback = 1
  return level


def get_top_lm(
  d_model: int,
  num_layers: int,
  num_heads: int,
  attention: ml_collections.ConfigDict | None = None,
) -> ml_collections.ConfigDict:
  """A top LM that attends to all codes of a document."""
  top_lm = default.get_top_lm()
  top_lm.d_model = d_model
  top_lm.stack.update(
    num_layers=num_layers, num_heads=num_heads, ffn_dim=4 * d_model
  )
  if attention is not None:
    top_lm.stack.attention = attention
  return top_lm


def get_run(
  levels: tuple[ml_collections.ConfigDict, ...],
  top_lm: ml_collections.ConfigDict | None,
  *,
  batch_size: int,
  sequence_length: int = 2048,
  learning_rate: float = 5e-4,
) -> ml_collections.ConfigDict:
  """A run of the original's length and schedule.

  The original's data set, fineweb-edu, is not downloaded: pass files by
  `--config.data.train`.
  """
  config = default.get_settings()
  config.model.levels = levels
  if top_lm is not None:
    config.model.top_lm = top_lm
  config.model.dtype = 'bfloat16'
  config.max_steps = None
  config.log_interval = 10
  config.eval_interval = 1000
  config.checkpoint_interval = 1000
  config.data.validation_fraction = 0.01
  config.data.batch_size = batch_size
  config.data.sequence_length = sequence_length
  config.optimizer.learning_rate = learning_rate
  config.optimizer.warmup_steps = 1000
  return config


def use_xla(config: ml_collections.ConfigDict) -> None:
  """Makes XLA compute every op, on any platform."""
  config.model.implementation.update(
    attention='xla',
    segment_pool='xla',
    segment_cross='gather',
    nearest_code='xla',
  )


def freeze_entropy_model(level: ml_collections.ConfigDict) -> None:
  """Cuts segments where the entropy of a loaded, frozen model jumps."""
  level.segmentation.rule = 'entropy_delta'
  level.segmentation.threshold = 0.3
  level.freeze_entropy_model = True


def get_config() -> ml_collections.ConfigDict:
  attention = get_latent(64, 128, 32)
  level = resize(
    default.get_level(), 512, 8, 128, layers=(4, 6, 9), attention=attention
  )
  top_lm = get_top_lm(512, 16, 8, attention)
  return get_run((level,), top_lm, batch_size=8)
