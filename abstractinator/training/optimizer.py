"""Optimizers and schedules of their learning rate."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from abstractinator.config import LearningRatesConfig, OptimizerConfig
from abstractinator.types import Array, PyTree

# Input and output axes of the kernels of a block, by path. Any other axis
# counts separate matrices.
_MUON_AXES = (
  (r'/qkv/kernel$', MuonDimensionNumbers(0, (2, 3))),
  (r'/[qkv]/kernel$', MuonDimensionNumbers(0, (1, 2))),
  (r'/(query_down|query_up|value_up)/kernel$', MuonDimensionNumbers(1, 2)),
  (r'/out/kernel$', MuonDimensionNumbers((0, 1), 2)),
  (r'/gate_up/kernel$', MuonDimensionNumbers(0, 2)),
  (r'/(kv|down)/kernel$', MuonDimensionNumbers(0, 1)),
)
# Fraction of the fall that is left, given the fraction of its time that has
# passed.
_FALLS = {
  'cosine': lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
  'warmup_stable_decay': lambda progress: 1.0 - progress,
  'constant': jnp.ones_like,
}
# The optimizer counts in int32.
_MAX_STEPS = 2**31 - 1
# Excluded from weight decay: these are not kernels of linear maps.
_NOT_DECAYED = ('embedding', 'scale', 'bias')
# Parts with a learning rate of their own. The first of these names in the path
# of a parameter is its part; without any it belongs to the compressor.
_PARTS = ('top_lm', 'entropy_model', 'expander')


def make_optimizer(
  config: OptimizerConfig, total_steps: int
) -> optax.GradientTransformation:
  """Builds the optimizer of a run.

  Args:
    config: Settings of the optimizer.
    total_steps: Number of optimizer steps of the run.

  Returns:
    Clipping of the gradient's global norm, then AdamW; or with kind 'muon' Muon
    for the kernels of blocks and AdamW for all other parameters.
  """
  schedule = make_schedule(config, total_steps)
  optimizer = optax.adamw(
    schedule,
    b1=config.beta1,
    b2=config.beta2,
    weight_decay=config.weight_decay,
    mask=decay_mask,
  )
  if config.kind == 'muon':
    # Muon's own AdamW has Nesterov momentum and decays every parameter, so it
    # is given only the parameters that Muon moves.
    of_blocks = muon(
      schedule,
      beta=config.beta1,
      weight_decay=config.weight_decay,
      consistent_rms=0.2,
      muon_weight_dimension_numbers=_muon_axes,
    )
    optimizer = optax.partition(
      {'muon': of_blocks, 'adamw': optimizer}, muon_labels
    )
  steps = [optax.clip_by_global_norm(config.clip_norm), optimizer]
  if set(config.relative_rates.to_dict().values()) != {1.0}:
    steps.append(_scale_parts(config.relative_rates))
  return optax.chain(*steps)


def warmup_of(config: OptimizerConfig, total_steps: int) -> int:
  """Returns the steps of the warm-up: half of a run that it does not fit into.

  Args:
    config: Settings of the optimizer.
    total_steps: Number of optimizer steps of the run.
  """
  fits = config.warmup_steps <= total_steps
  return config.warmup_steps if fits else total_steps // 2


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Builds the learning rate as a function of the step, counted from 0.

  The rate rises linearly and reaches `learning_rate` in the last step of the
  warm-up; step 0 already learns. Then it stays, or falls to `final_fraction` of
  that and reaches it in the last step of the run: along a cosine, or linearly
  in the last `decay_fraction` of the steps.

  `optax.schedules` has these shapes, too. But its linear schedule computes
  (start - end) * (1 - progress) + end, which cancels at the foot of a warm-up:
  in float32 the rate of the first of 100 steps is off by 7e-6 of itself, 60
  times the rounding of this function.

  Args:
    config: Settings of the optimizer.
    total_steps: Number of optimizer steps of the run.

  Returns:
    A function from the step, an int or an int32 scalar, to the learning rate.

  Raises:
    ValueError: If steps are no int32.
  """
  warmup_steps = warmup_of(config, total_steps)
  if total_steps > _MAX_STEPS:
    raise ValueError(
      f'max_steps, num_epochs: got {total_steps} steps, allowed: at most'
      f' {_MAX_STEPS}'
    )
  peak_step, last_step = max(warmup_steps - 1, 0), total_steps - 1
  start = peak_step
  if config.schedule == 'warmup_stable_decay':
    fall_steps = round(config.decay_fraction * total_steps)
    start = max(last_step - fall_steps, peak_step)
  fall, floor = _FALLS[config.schedule], config.final_fraction

  def schedule(step: Array | int) -> Array:
    warmup = jnp.minimum((step + 1) / (peak_step + 1), 1.0)
    progress = jnp.clip((step - start) / max(last_step - start, 1), 0.0, 1.0)
    return (
      config.learning_rate * warmup * (floor + (1 - floor) * fall(progress))
    )

  return schedule


def rise_of_longer_run(
  old: OptimizerConfig,
  new: OptimizerConfig,
  old_steps: int,
  new_steps: int,
  step: int,
) -> str | None:
  """Describes how a run that goes on for longer raises its learning rate.

  Args:
    old: Settings of the optimizer before.
    new: Settings from now on.
    old_steps: Number of optimizer steps of the run before.
    new_steps: Number of optimizer steps from now on.
    step: Optimizer steps done.

  Returns:
    One line, with a way to train longer that raises nothing; None if the rate
    does not rise, or the warm-up is not over.
  """
  if step <= warmup_of(old, old_steps) or step > old_steps:
    return None
  before = float(make_schedule(old, old_steps)(step - 1))
  after = float(make_schedule(new, new_steps)(step))
  if after <= 1.001 * before:
    return None
  return (
    f'step {step}: the learning rate rises again, from {before:.3g} to'
    f' {after:.3g}, since it had fallen for a run of {old_steps} steps, not'
    f' {new_steps}; to train longer without that, use optimizer.schedule'
    " 'warmup_stable_decay' from the start and go on from a checkpoint before"
    ' its fall'
  )


def decay_mask(params: PyTree) -> PyTree:
  """Returns a tree of bools: True where weight decay applies."""

  def is_decayed(path: tuple[Any, ...], leaf: Array) -> bool:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return leaf.ndim >= 2 and name not in _NOT_DECAYED

  return jax.tree_util.tree_map_with_path(is_decayed, params)


def muon_labels(params: PyTree) -> PyTree:
  """Returns a tree of 'muon' and 'adamw': the optimizer of each parameter."""
  return jax.tree.map(
    lambda axes: 'adamw' if axes is None else 'muon',
    _muon_axes(params),
    is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
  )


def _muon_axes(params: PyTree) -> PyTree:
  """Returns the axes of parameters that Muon moves, None for all others."""

  def axes_of(path: tuple[Any, ...], _: Array) -> MuonDimensionNumbers | None:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if '/block_' in f'/{name}':
      for pattern, axes in _MUON_AXES:
        if re.search(pattern, name):
          return axes
    return None

  return jax.tree_util.tree_map_with_path(axes_of, params)


def _scale_parts(rates: LearningRatesConfig) -> optax.GradientTransformation:
  """Multiplies updates by the relative rate of the part they belong to."""

  def scale(path: tuple[Any, ...], update: Array) -> Array:
    names = [getattr(entry, 'key', None) for entry in path]
    part = next((n for n in _PARTS if n in names), 'compressor')
    return getattr(rates, part) * update

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates)
  )
