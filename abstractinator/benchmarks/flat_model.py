"""The flat byte model that a hierarchy is compared with."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from abstractinator.cli import config_file
from abstractinator.config import LevelConfig, RunConfig
from abstractinator.training.flops import model_flops

# Least and most width per layer; models of other shapes learn worse.
_LEAST_ASPECT, _MOST_ASPECT = 16, 48


def flat_config(config: RunConfig) -> tuple[str, RunConfig]:
  """Returns a flat model of the training FLOPs of a hierarchy.

  It is the model of `configs/flat.py` with the number of heads, each as wide as
  there, and of layers that comes closest. The hidden width of feed-forward
  layers makes up for what remains. Data, steps and optimizer are those of the
  hierarchy.

  Args:
    config: Run of the hierarchy.

  Returns:
    Its name and its run.

  Raises:
    ValueError: If the run does not train a whole hierarchy.
  """
  if config.objective != 'all':
    raise ValueError(
      f"objective: got {config.objective!r}, allowed: 'all', for a hierarchy"
    )
  (like,) = config_file.load('flat').model.levels
  wanted = model_flops(config)
  _, level = min(
    _candidates(config, like, wanted), key=lambda pair: abs(math.log(pair[0]))
  )
  stack = level.entropy_model
  narrow = dataclasses.replace(stack, ffn_dim=level.d_model)
  low, high = (
    model_flops(_run(config, dataclasses.replace(level, entropy_model=x)))
    for x in (narrow, stack)
  )
  fraction = max((wanted - low) / (high - low), 0.0)
  hidden = level.d_model + round(fraction * (stack.ffn_dim - level.d_model))
  stack = dataclasses.replace(stack, ffn_dim=hidden)
  level = dataclasses.replace(level, entropy_model=stack)
  name = f'flat-{stack.num_layers}x{level.d_model}x{hidden}'
  return name, _run(config, level)


def _candidates(
  config: RunConfig, like: LevelConfig, wanted: int
) -> Iterator[tuple[float, LevelConfig]]:
  """Yields, for each width, the depth that comes closest.

  Args:
    config: Run of the hierarchy.
    like: Level of `configs/flat.py`.
    wanted: FLOPs of a step of the hierarchy.

  Yields:
    FLOPs over those wanted, and the level.
  """
  for heads in itertools.count(1):
    # FLOPs are linear in the number of layers.
    one, two = (
      model_flops(_run(config, _level(like, heads, n))) for n in (1, 2)
    )
    layers = max(round(1 + (wanted - one) / (two - one)), 1)
    level = _level(like, heads, layers)
    if layers == 1 or level.d_model >= _LEAST_ASPECT * layers:
      yield (one + (layers - 1) * (two - one)) / wanted, level
    if level.d_model >= _MOST_ASPECT * layers:
      return


def _level(like: LevelConfig, heads: int, layers: int) -> LevelConfig:
  """Returns a level with another number of heads, as wide, and of layers."""
  given = like.entropy_model
  stack = dataclasses.replace(
    given,
    num_layers=layers,
    num_heads=heads,
    ffn_dim=given.ffn_dim * heads // given.num_heads,
  )
  # The parts that do not run have to fit the width, too.
  others = {
    part: dataclasses.replace(getattr(like, part), num_heads=heads)
    for part in ('encoder', 'pooling', 'expander')
  }
  width = like.d_model // given.num_heads * heads
  return dataclasses.replace(like, d_model=width, entropy_model=stack, **others)


def _run(config: RunConfig, level: LevelConfig) -> RunConfig:
  """Returns a run that trains the entropy model of a level alone."""
  model = dataclasses.replace(config.model, levels=(level,), top_lm=None)
  loss = dataclasses.replace(
    config.loss, curriculum_steps=0, curriculum_stops=False
  )
  return dataclasses.replace(
    config,
    objective='entropy_model',
    load_base_from=None,
    model=model,
    loss=loss,
  )
