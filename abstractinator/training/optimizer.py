"""AdamW with a linear warm-up, cosine decay and a clipped gradient."""

import jax
import jax.numpy as jnp
import optax

from abstractinator.config import OptimizerConfig
from abstractinator.types import PyTree

# Matrices by shape that are no linear maps: shrinking them is no prior.
_NOT_DECAYED = ('embedding', 'scale', 'bias')


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
  """Builds the learning rate as a function of the step, counted from 0.

  It rises linearly to `learning_rate`, which it reaches in the last step of
  the warm-up, and falls along a cosine to `final_fraction` of it, which it
  reaches in the last step of the run. Step 0 already learns.

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
  peak_step = max(warmup_steps - 1, 0)
  decay_steps = max(total_steps - 1 - peak_step, 1)

  def schedule(step):
    warmup = jnp.minimum((step + 1) / (peak_step + 1), 1.0)
    progress = jnp.clip((step - peak_step) / decay_steps, 0.0, 1.0)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    fraction = config.final_fraction + (1 - config.final_fraction) * cosine
    return config.learning_rate * warmup * fraction

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
    Clipping of the gradient's global norm, then AdamW; weight decay moves
    only what `decay_mask` says.

  Raises:
    ValueError: If the warm-up is longer than the run.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      make_schedule(config, total_steps),
      b1=config.beta1,
      b2=config.beta2,
      weight_decay=config.weight_decay,
      mask=decay_mask,
    ),
  )
