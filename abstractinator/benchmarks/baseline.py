"""The level that benchmarks time, and a compiled training step of it."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.config import (
  ImplementationConfig,
  LearningRatesConfig,
  LevelConfig,
  LossConfig,
  ModelConfig,
  OptimizerConfig,
)
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.ops.implementation import resolve_implementations
from abstractinator.runs.state import initial_state
from abstractinator.training.flops import training_flops
from abstractinator.training.optimizer import make_optimizer
from abstractinator.training.step import train_step
from abstractinator.types import NUM_BYTES, Batch

_AUTO = ImplementationConfig.everywhere('auto')

_ATTENTION = dict(
  form='regular', kv_dim=None, query_dim=None, retrieval_dim=None
)
_STACK = dict(
  num_layers=2, num_heads=4, window=64, ffn_dim=512, attention=_ATTENTION
)

# The size at which the PyTorch original was timed: 128 wide, 4 heads, window
# 64, layers 2 + 2 + 4, 512 codes as wide as the model, one slot for two bytes,
# cross-attention to the own and the previous segment.
LEVEL = LevelConfig.from_dict(
  dict(
    d_model=128,
    entropy_model=_STACK,
    entropy_heads=dict(
      tie_to_embedding=False,
      gaussian_components=0,
      gaussian_layers=0,
      gaussian_detach=False,
      gaussian_log_variance_min=-8.0,
      gaussian_log_variance_max=8.0,
      source='logit',
      temperature=1.0,
      top_k=0,
      top_p=1.0,
    ),
    segmentation=dict(
      rule='entropy_delta',
      threshold=0.2885,
      target_length=4.5,
      calibration_step=0.05,
      min_length=1,
      max_length=16,
      capacity_length=2.0,
    ),
    encoder=_STACK,
    pooling=dict(num_heads=4, num_queries=1),
    quantizer=dict(
      kind='vq',
      code_dim=None,
      codebook_size=512,
      depth=1,
      levels=(8, 8, 8),
      codebook='ema',
      cosine=False,
      start='normal',
      decay=0.97,
      reset_interval_steps=10,
      reset_after_steps=40,
      reset_usage=0.0,
      forbidden=(),
      protected=(),
    ),
    expander=dict(
      num_layers=4,
      num_heads=4,
      ffn_dim=512,
      context='segment',
      window=64,
      lookback=1,
      ends='head',
      byte_dropout=0.0,
      code_dim=None,
      distance='dot',
      residual_conditioning=True,
      attention=_ATTENTION,
    ),
    freeze=False,
    freeze_entropy_model=False,
    load_entropy_model_from=None,
  )
)
_WEIGHTS = LossConfig(
  entropy_model=1.0,
  gaussian=0.0,
  expander=1.0,
  end=1.0,
  commitment=0.25,
  codebook=1.0,
  top_lm_code=0.0,
  top_lm_vector=0.0,
  top_lm_end=0.0,
  top_lm_expander=0.0,
  curriculum_steps=0,
  curriculum_stops=False,
)
_OPTIMIZER = OptimizerConfig(
  kind='adamw',
  schedule='cosine',
  learning_rate=5e-4,
  final_fraction=0.1,
  warmup_steps=0,
  decay_fraction=0.0,
  relative_rates=LearningRatesConfig(1.0, 1.0, 1.0, 1.0),
  weight_decay=0.01,
  beta1=0.9,
  beta2=0.98,
  clip_norm=1.0,
  ema_decay=0.0,
)


class Step:
  """A compiled training step on random bytes, with its state."""

  def __init__(
    self,
    level: LevelConfig,
    sequence_length: int,
    batch_size: int,
    dtype: str,
  ):
    """Compiles.

    Args:
      level: Sizes.
      sequence_length: S.
      batch_size: B.
      dtype: Compute type.
    """
    self.shape = (batch_size, sequence_length)
    model = AbstractinatorPyramid(
      ModelConfig((level,), None, dtype=dtype, implementation=_AUTO),
      num_ids=NUM_BYTES,
      implementation=resolve_implementations(
        **_AUTO.to_dict(), platform=jax.default_backend()
      ),
      dtype=jnp.dtype(dtype),
    )
    optimizer = make_optimizer(_OPTIMIZER, total_steps=1000)
    self._batch = jax.device_put(random_batch(self.shape))
    self._state = jax.jit(
      lambda key: initial_state(
        key,
        model,
        optimizer,
        batch_size=batch_size,
        sequence_length=sequence_length,
      )
    )(jax.random.key(0))
    step = functools.partial(
      train_step,
      model=model,
      optimizer=optimizer,
      weights=_WEIGHTS,
      objective=OBJECTIVES['all'],
      seed=0,
    )
    start = time.perf_counter()
    self.compiled = (
      jax.jit(step, donate_argnums=0).lower(self._state, self._batch).compile()
    )
    self.compile_seconds = time.perf_counter() - start
    variables = {'params': self._state.params, **self._state.collections}
    self.flops = training_flops(model.apply, variables, self._batch)

  def __call__(self) -> jax.Array:
    """Takes a step; returns something to wait for."""
    self._state, metrics = self.compiled(self._state, self._batch)
    return metrics['loss_total'].total

  def memory_bytes(self) -> int:
    """What the compiled step takes: arguments and temporaries."""
    memory = self.compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def random_batch(shape: tuple[int, int]) -> Batch:
  """Rows of printable bytes, a document each."""
  ids_BS = np.random.default_rng(0).integers(32, 127, shape, dtype=np.int32)
  return Batch(
    ids_BS=ids_BS,
    document_BS=np.zeros(shape, np.int32),
    row_B=np.arange(shape[0], dtype=np.int32),
  )
