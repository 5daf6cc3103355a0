"""Runs with random parameters, for tests of the use of trained runs."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from abstractinator.config import RunConfig
from abstractinator.decoding.pyramid import make_model
from abstractinator.inference import TrainedPyramid
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.runs.checkpointer import Checkpointer
from abstractinator.runs.state import initial_state, variables_of
from configs import tiny, tiny_2level

TEXT = 'Grüße: ein Text, geteilt.\nZweite Zeile\x00'.encode()
# Lines of a command on standard error, about the run RUN of `config`.
WAITS = 'loading RUN\n82,048 parameters of step 3, compiling\n'


def config(lookback=0, context='segment', queries=1, ends='head') -> RunConfig:
  c = tiny.get_config()
  c.data.sequence_length = 32
  (level,) = c.model.levels
  level.segmentation.target_length = None
  level.segmentation.rule = 'entropy_delta'
  level.segmentation.threshold = 0.0
  level.segmentation.max_length = 8
  # Decoding by entropy has no slots to run short of, so encoding may not.
  level.segmentation.capacity_length = 1.0 if ends == 'entropy' else 2.0
  level.expander.lookback = lookback
  level.pooling.num_queries = queries
  level.expander.context = context
  level.expander.ends = ends
  return RunConfig.from_dict(json.loads(c.to_json_best_effort()))


def pyramid_config(num_levels=2) -> RunConfig:
  """Returns the config of up to two levels and a top LM."""
  c = tiny_2level.get_config()
  c.data.sequence_length = 32
  c.model.levels = c.model.levels[:num_levels]
  for level in c.model.levels:
    level.d_model = 16
    level.quantizer.codebook_size = 16
  c.model.top_lm.d_model = 16
  return RunConfig.from_dict(json.loads(c.to_json_best_effort()))


def level(run_config: RunConfig, edit=lambda variables: variables):
  """Returns a pyramid with random parameters, without a checkpoint."""
  variables = variables_of(random_state(run_config, 3))
  return TrainedPyramid(run_config, edit(variables))


def save(
  workdir, run_config: RunConfig, steps=(3,), edit=lambda state: state
) -> None:
  """Writes checkpoints with random parameters, large enough to matter."""
  with Checkpointer(str(workdir), max_to_keep=9) as checkpointer:
    for step in steps:
      state = edit(random_state(run_config, step))
      checkpointer.save(step, state, {'next_index': step}, run_config.to_dict())


def saved(tmp_path_factory) -> str:
  """Returns the directory of a run of `config()` with random parameters."""
  path = tmp_path_factory.mktemp('run')
  save(path, config())
  return str(path)


@functools.cache
def _abstract_state(run_config: RunConfig):
  init = functools.partial(
    initial_state,
    model=make_model(run_config, 'cpu'),
    optimizer=optax.identity(),
    batch_size=1,
    sequence_length=run_config.data.sequence_length,
    method=OBJECTIVES[run_config.objective].init_method,
  )
  return jax.eval_shape(init, jax.random.key(0))


def random_state(run_config: RunConfig, seed: int):
  """Returns random numbers in the shapes of a state, faster than its init."""
  abstract = _abstract_state(run_config)
  rng = np.random.default_rng(seed)

  def leaf(x):
    # Scalars are steps, sums and thresholds; they stay 0.
    scale = 0.3 if x.ndim and x.dtype == jnp.float32 else 0.0
    return jnp.asarray(scale * rng.normal(size=x.shape), x.dtype)

  return jax.tree.map(leaf, abstract)
