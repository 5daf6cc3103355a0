"""A pyramid with a top LM, trained for a few steps on any mesh."""

import json
import random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.config import MeshConfig, RunConfig
from abstractinator.objective.metrics import Metrics
from abstractinator.runs import sharding
from abstractinator.runs.state import TrainState, variables_of
from abstractinator.training.program import make_program
from abstractinator.types import EOS_ID, NUM_BYTES, Batch
from configs import tiny, tiny_2level

SIZE, ROWS = 48, 16
# Rows of this size give levels odd numbers of slots, 23 and 19.
TEXT_SIZE = 32
MESHES = {
  'one': (1, 1, 1),
  'data': (8, 1, 1),
  'fsdp': (1, 8, 1),
  'all': (2, 2, 2),
}


def make_values(levels=2):
  """Returns a config of one or two levels, to be edited."""
  values = tiny_2level.get_config()
  values.model.levels = values.model.levels[:levels]
  values.data.sequence_length, values.data.batch_size = SIZE, ROWS
  values.loss.curriculum_steps, values.loss.curriculum_stops = 0, False
  values.optimizer.warmup_steps = 5
  # Small steps: no code comes so near to two entries that rounding decides.
  values.optimizer.learning_rate = 1e-3
  for level in values.model.levels:
    tiny.make_small(level, d_model=16)
    level.quantizer.codebook_size, level.quantizer.code_dim = 16, 8
    # Codes are replaced within a few steps.
    level.quantizer.reset_interval_steps = 4
    level.quantizer.reset_after_steps = 4
    # Random draws have to be the same on every mesh, too.
    level.expander.byte_dropout = 0.2
    level.segmentation.threshold = 3.0
    level.segmentation.capacity_length = 2.5
  top_lm = values.model.top_lm
  if levels == 1:
    # As in the main job: vectors go up, and states go down.
    level.expander.update(
      base='entropy_model',
      ends='entropy',
      conditioning='top_lm',
    )
    level.quantizer.update(cosine=True, rate_temperature=0.5)
    top_lm.update(inputs='segments', base='entropy_model')
  top_lm.d_model = 16
  # A second level runs at night, on layers as a loop as well.
  top_lm.stack.update(num_layers=levels, num_heads=2, ffn_dim=32)
  return values


def make_config(values=None) -> RunConfig:
  values = make_values() if values is None else values
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


def make_batch(step: int, rows: int = ROWS) -> Batch:
  """Returns rows of two documents each, all different."""
  rng = np.random.default_rng(step)
  ids = rng.integers(0, 64, (rows, SIZE)).astype(np.int32) % NUM_BYTES
  document = np.zeros((rows, SIZE), np.int32)
  for row, end in enumerate(rng.integers(8, SIZE - 8, rows)):
    ids[row, end - 1] = ids[row, -1] = EOS_ID
    document[row, end:] = 1
  return Batch(ids, document, (step * rows + np.arange(rows)).astype(np.int32))


def make_text(step: int, rows: int, size: int = TEXT_SIZE) -> Batch:
  """Returns rows of a few words, in which segments repeat."""
  words = 'the quick brown fox jumps over the lazy dog and so on'.split()
  rng = random.Random(step)
  lines = (' '.join(rng.choices(words, k=size)) for _ in range(rows))
  ids = np.array([list(line.encode()[:size]) for line in lines], np.int32)
  return Batch(
    ids, np.zeros_like(ids), (step * rows + np.arange(rows)).astype(np.int32)
  )


class Trained(NamedTuple):
  """Results of a few steps on a mesh.

  Attributes:
    losses: Loss of each step, [steps].
    codes: For each step the codes of every level; -1 in empty slots.
    metrics: Metrics of the last step.
    state: State after the last step, on the mesh.
  """

  losses: np.ndarray
  codes: list[list[np.ndarray]]
  metrics: Metrics
  state: TrainState


def train(
  config: RunConfig, sizes=MESHES['one'], steps: int = 20, batch_of=make_batch
) -> Trained:
  """Initializes a state on a mesh and trains it for a few steps."""
  devices = jax.devices()[: int(np.prod(sizes))]
  mesh = sharding.make_mesh(MeshConfig(*sizes), devices)
  program = make_program(config, 'cpu', total_steps=steps)
  key = jax.random.key(0)
  of_state = sharding.state_shardings(jax.eval_shape(program.init, key), mesh)
  of_batch = sharding.batch_sharding(mesh)

  def step_and_codes(state, batch):
    found = program.model.apply(
      variables_of(state), batch, method='compress_all'
    )
    codes = [
      # The codes of empty slots mean nothing.
      jnp.where(c.is_code_BU, c.quantized.codes_BP, -1)
      for c in found.levels
    ]
    return *program.step(state, batch), codes

  everywhere = sharding.replicated(mesh)
  step_fn = jax.jit(
    step_and_codes,
    in_shardings=(of_state, of_batch),
    out_shardings=(of_state, everywhere, everywhere),
    donate_argnums=0,
  )
  losses, codes, found = [], [], Metrics()
  with jax.set_mesh(mesh):
    state = jax.jit(program.init, out_shardings=of_state)(key)
    for step in range(steps):
      rows = batch_of(step, config.data.batch_size)
      batch = sharding.shard_batch(rows, mesh)
      state, found, of_step = step_fn(state, batch)
      found, of_step = jax.device_get((found, of_step))
      codes.append(of_step)
      mean = found.whole['loss_total']
      losses.append(mean.total / mean.count)
  return Trained(np.asarray(losses), codes, found, state)
