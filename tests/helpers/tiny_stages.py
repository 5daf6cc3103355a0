"""Runs that build on other runs, small, and what becomes of them."""

import json

import jax
import numpy as np

from abstractinator.config import RunConfig
from abstractinator.runs import checkpoint, sharding
from abstractinator.runs.state import variables_of
from abstractinator.training.loop import Run
from configs import tiny

# Of all devices, which tests replace.
make_mesh = sharding.make_mesh


def small(values, corpus, edit=lambda values: None) -> RunConfig:
  """A config made small, with a few steps."""
  values.data.train = f'{corpus}/*.txt'
  values.data.sequence_length, values.data.batch_size = 32, 8
  values.max_steps, values.num_epochs = 6, 10.0
  values.log_interval, values.eval_interval, values.checkpoint_interval = (
    3,
    6,
    3,
  )
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
  """A whole run; its first variables, its last ones, its last metrics."""
  run = Run(config, str(workdir))
  state = run.start()
  first = jax.device_get(variables_of(state))
  tags = run.train(state)
  last = checkpoint.restore_variables(
    str(workdir),
    {name: getattr(run._abstract, name) for name in ('params', 'collections')},
  )
  last = jax.device_get({'params': last['params'], **last['collections']})
  return first, last, tags, run


def take_steps(config, workdir, steps=6):
  """As `train`, without evaluation and checkpoints; metrics of a step."""
  run = Run(config, str(workdir))
  state = run.start()
  first = jax.device_get(variables_of(state))
  rows = run._train_batches(0)
  for _ in range(steps):
    state, found = run._step(state, sharding.shard_batch(next(rows), run._mesh))
  found, last = jax.device_get((found, variables_of(state)))
  return first, last, found, run


def by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def changed(a, b):
  a, b = by_path(a), by_path(b)
  assert a.keys() == b.keys()
  return {path for path in a if not np.array_equal(a[path], b[path])}


def assert_top_lm_alone_moved(before, first, last):
  """A run began with the variables of its base, and changed a top LM only."""
  loaded = by_path(first)
  for path, leaf in by_path(before).items():
    np.testing.assert_array_equal(leaf, loaded[path], err_msg=path)
  moved = changed(first, last)
  # Learned weights of codes that no row has may stay.
  assert any('stack' in path for path in moved)
  assert all(path.startswith('params/top_lm/') for path in moved)
