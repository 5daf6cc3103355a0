"""Small runs that build on other runs, and comparisons of their variables."""

import json

import jax
import numpy as np

from abstractinator.config import RunConfig
from abstractinator.runs import checkpoint, sharding
from abstractinator.runs.checksums import by_path
from abstractinator.runs.state import variables_of
from abstractinator.training.loop import Run
from configs import tiny

# The original function, which tests replace.
make_mesh = sharding.make_mesh


def small(values, corpus, edit=lambda values: None) -> RunConfig:
  """Returns the config of a run with small layers and few steps."""
  values.data.train = f'{corpus}/*.txt'
  values.data.sequence_length, values.data.batch_size = 32, 8
  values.max_steps, values.num_epochs = 6, 10.0
  values.log_interval = values.checkpoint_interval = 3
  values.eval_interval = 6
  values.eval_batches = values.final_eval_batches = 1
  values.optimizer.warmup_steps = 2
  values.loss.curriculum_steps, values.loss.curriculum_stops = 0, False
  for level in values.model.levels:
    tiny.make_small(level, d_model=16)
    level.quantizer.codebook_size = 16
    level.quantizer.reset_interval_steps = 2
    level.quantizer.reset_after_steps = 2
    level.segmentation.max_length = 8
    level.segmentation.capacity_length = 2.0
  if values.model.top_lm is not None:
    values.model.top_lm.d_model = 16
    values.model.top_lm.stack.update(num_layers=1, num_heads=2, ffn_dim=16)
  edit(values)
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


def train(config, workdir):
  """Makes a whole run; returns its first and last variables, and metrics."""
  run = Run(config, str(workdir))
  state = run.start()
  first = jax.device_get(variables_of(state))
  summary = run.train(state)
  last = checkpoint.restore_variables(str(workdir), variables_of(run._abstract))
  return first, jax.device_get(last), summary, run


def take_steps(config, workdir, steps=6):
  """Trains without evaluation and checkpoints; returns as `train` does."""
  run = Run(config, str(workdir))
  state = run.start()
  first = jax.device_get(variables_of(state))
  rows = run._train_batches(0)
  for _ in range(steps):
    state, found = run._step(state, sharding.shard_batch(next(rows), run._mesh))
  found, last = jax.device_get((found, variables_of(state)))
  return first, last, found, run


def changed(a, b):
  """Returns the paths of the leaves that differ between two trees."""
  a, b = by_path(a), by_path(b)
  assert a.keys() == b.keys()
  return {path for path in a if not np.array_equal(a[path], b[path])}


def assert_top_lm_alone_moved(before, first, last):
  """Requires that a run began as its base and changed only its top LM."""
  loaded = by_path(first)
  for path, leaf in by_path(before).items():
    np.testing.assert_array_equal(leaf, loaded[path], err_msg=path)
  moved = changed(first, last)
  # Weights of codes that are in no row may stay as they are.
  assert any('stack' in path for path in moved)
  assert all(path.startswith('params/top_lm/') for path in moved)
