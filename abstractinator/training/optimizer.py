"""Optimizers and schedules of their learning rate."""

import re

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from abstractinator.config import LearningRatesConfig, OptimizerConfig
from abstractinator.types import PyTree

# Of each kernel of a block, its input and its output axes; what is neither
# counts separate matrices.
_DIMENSIONS = (
  (r'/qkv/kernel$', MuonDimensionNumbers(0, (2, 3))),
  (r'/[qkv]/kernel$', MuonDimensionNumbers(0, (1, 2))),
  (r'/(query_down|query_up|value_up)/kernel$', MuonDimensionNumbers(1, 2)),
  (r'/out/kernel$', MuonDimensionNumbers((0, 1), 2)),
  (r'/gate_up/kernel$', MuonDimensionNumbers(0, 2)),
  (r'/(kv|down)/kernel$', MuonDimensionNumbers(0, 1)),
)


def dimensions(params: PyTree) -> PyTree:
  """Input and output axes of what Muon moves, None for all else."""

  def of_leaf(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if '/block_' in f'/{name}':
      for pattern, axes in _DIMENSIONS:
        if re.search(pattern, name):
          return axes
    return None

  return jax.tree_util.tree_map_with_path(of_leaf, params)


def muon_labels(params: PyTree) -> PyTree:
  """'muon' or 'adamw', for `optax.partition`."""
  return jax.tree.map(
    lambda axes: 'adamw' if axes is None else 'muon',
    dimensions(params),
    is_leaf=_is_axes,
  )


def make_muon(
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Muon for trees of which only its own parameters are left."""
  return muon(
    schedule,
    beta=config.beta1,
    weight_decay=config.weight_decay,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=dimensions,
  )


def _is_axes(node) -> bool:
  return node is None or isinstance(node, MuonDimensionNumbers)


# How much is left of the fall, from how much of its time has passed.
_SHAPES = {
  'cosine': lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
  'warmup_stable_decay': lambda progress: 1.0 - progress,
  'constant': jnp.ones_like,
}
# Matrices by shape that are no linear maps: shrinking them is no prior.
_NOT_DECAYED = ('embedding', 'scale', 'bias')
# The first of these in a path says whose a parameter is.
_PARTS = ('top_lm', 'entropy_model', 'expander')


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Builds the learning rate as a function of the step, counted from 0.

  It rises linearly to `learning_rate`, which it reaches in the last step of
  the warm-up. Then it stays, or falls to `final_fraction` of it, which it
  reaches in the last step of the run: along a cosine, or linearly in the last
  `decay_fraction` of the steps. Step 0 already learns.

  Args:
    config: The optimizer's settings.
    total_steps: Optimizer steps of the whole run.

  Returns:
    A function from the step, an int or an int32 scalar, to the learning rate.

  Raises:
    ValueError: If the warm-up is longer than the run.
  """
  warmup_steps = config.warmup_steps
  if warmup_steps > total_steps:
    raise ValueError(
      f'optimizer.warmup_steps: got {warmup_steps}, allowed: at most the'
      f' {total_steps} steps of the run'
    )
  peak_step, last_step = max(warmup_steps - 1, 0), total_steps - 1
  start = peak_step
  if config.schedule == 'warmup_stable_decay':
    fall_steps = round(config.decay_fraction * total_steps)
    start = max(last_step - fall_steps, peak_step)
  shape = _SHAPES[config.schedule]

  def schedule(step):
    warmup = jnp.minimum((step + 1) / (peak_step + 1), 1.0)
    progress = jnp.clip((step - start) / max(last_step - start, 1), 0.0, 1.0)
    floor = config.final_fraction
    return (
      config.learning_rate * warmup * (floor + (1 - floor) * shape(progress))
    )

  return schedule


def decay_mask(params: PyTree) -> PyTree:
  """Returns a tree of bools: True where weight decay applies."""

  def is_decayed(path, leaf):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return leaf.ndim >= 2 and name not in _NOT_DECAYED

  return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(
  config: OptimizerConfig, total_steps: int
) -> optax.GradientTransformation:
  """Builds the optimizer of a run.

  Args:
    config: The optimizer's settings.
    total_steps: Optimizer steps of the whole run.

  Returns:
    Clipping of the gradient's global norm, then AdamW, or Muon for what
    `muon.dimensions` says and AdamW for the rest; weight decay moves only what
    `decay_mask` says.

  Raises:
    ValueError: If the warm-up is longer than the run.
  """
  schedule = make_schedule(config, total_steps)
  adamw = optax.adamw(
    schedule,
    b1=config.beta1,
    b2=config.beta2,
    weight_decay=config.weight_decay,
    mask=decay_mask,
  )
  if config.kind == 'muon':
    optimizer = optax.partition(
      {'muon': make_muon(config, schedule), 'adamw': adamw}, muon_labels
    )
  else:
    optimizer = adamw
  steps = [optax.clip_by_global_norm(config.clip_norm), optimizer]
  if set(config.relative_rates.to_dict().values()) != {1.0}:
    steps.append(_scale_parts(config.relative_rates))
  return optax.chain(*steps)


def _scale_parts(rates: LearningRatesConfig) -> optax.GradientTransformation:
  """Multiplies updates by the rate of the part that they move."""

  def scale(path, update):
    names = [getattr(entry, 'key', None) for entry in path]
    part = next((n for n in _PARTS if n in names), 'compressor')
    return getattr(rates, part) * update

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates)
  )
