"""Pyramids small enough to follow every one of their ids."""

import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.config import ModelConfig
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.objective import metrics
from abstractinator.types import EOS_ID, NUM_BYTES, PAD_ID, Batch
from tests.helpers.implementations import XLA, XLA_CONFIG
from tests.helpers.jitted import init

_DEFAULT = runpy.run_path(
  str(pathlib.Path(__file__).parents[2] / 'configs' / 'default.py')
)

_STACK = {'num_layers': 1, 'num_heads': 2, 'ffn_dim': 24}
_TINY = {
  'd_model': 16,
  **{
    f'{part}.{name}': value
    for part in ('entropy_model', 'encoder', 'expander')
    for name, value in _STACK.items()
  },
  'entropy_model.window': 5,
  'encoder.window': 4,
  'expander.window': 3,
  # Jumps of any size count, so that a dozen ids make several segments.
  'segmentation.threshold': 0.0,
  'segmentation.max_length': 5,
  # Slots never run short.
  'segmentation.capacity_length': 1.0,
  'segmentation.target_length': None,
  'pooling.num_heads': 2,
  'quantizer.codebook_size': 12,
  'quantizer.code_dim': 6,
}


def make_config(*changes, top_lm='discrete', top=None) -> ModelConfig:
  """Returns a config with a level per dictionary of changed settings.

  Args:
    *changes: Changed settings of each level, bottom first.
    top_lm: Mode of the top LM; None for none.
    top: Changed settings of the top LM.
  """
  levels = []
  for number, edits in enumerate(changes):
    level = _DEFAULT['get_upper_level' if number else 'get_level']()
    level.update_from_flattened_dict(_TINY | edits)
    levels.append(json.loads(level.to_json_best_effort()))
  changed, top = top or {}, None
  if top_lm is not None:
    top = _DEFAULT['get_top_lm']()
    top.update_from_flattened_dict(
      {'mode': top_lm, 'd_model': 16}
      | {f'stack.{name}': value for name, value in _STACK.items()}
      | changed
    )
    top = json.loads(top.to_json_best_effort())
  return ModelConfig.from_dict(
    {
      'levels': levels,
      'top_lm': top,
      'dtype': 'float32',
      'implementation': XLA_CONFIG.to_dict(),
    }
  )


def make_model(config: ModelConfig) -> AbstractinatorPyramid:
  """Returns the pyramid of a config, over bytes."""
  return AbstractinatorPyramid(config, NUM_BYTES, XLA, jnp.float32)


def make_batch(lengths, size, rows=None, seed=0) -> Batch:
  """Returns rows of documents; documents of equal seeds have equal bytes.

  Args:
    lengths: For each row, (length, seed) of each document.
    size: Ids of a row; padding fills it up.
    rows: Identities of the rows; their numbers by default.
    seed: Number added to the seeds of the documents.
  """
  ids = np.full((len(lengths), size), PAD_ID, np.int32)
  document = np.full((len(lengths), size), -1, np.int32)
  for row, documents in enumerate(lengths):
    begin = 0
    for number, (length, of_document) in enumerate(documents):
      rng = np.random.default_rng(seed + of_document)
      end = begin + length
      ids[row, begin : end - 1] = rng.integers(0, NUM_BYTES, length - 1)
      ids[row, end - 1] = EOS_ID
      document[row, begin:end] = number
      begin = end
  rows = np.arange(len(lengths)) if rows is None else np.asarray(rows)
  return Batch(*map(jnp.asarray, (ids, document, rows.astype(np.int32))))


@functools.cache
def make_variables(config: ModelConfig, size=16):
  """Returns variables whose predictions are far from uniform."""
  zeros = jnp.zeros((1, size), jnp.int32)
  batch = Batch(zeros, zeros, zeros[:, 0])
  variables = dict(init(make_model(config), jax.random.key(0), batch))

  def louder(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if 'log_scale' in name:
      return x + 2.0
    return x * 20 if 'head/' in name or 'logits_' in name else x

  params = jax.tree_util.tree_map_with_path(louder, variables['params'])
  return variables | {'params': params}


def assert_metrics_agree(found, num_levels):
  """Checks the metrics of a step, whose bits are the sum of their parts.

  Args:
    found: Metrics of a pyramid with a discrete top LM.
    num_levels: Number of its levels.
  """
  for name, mean in found.flattened().items():
    assert np.isfinite(mean.total).all(), name
  summary = metrics.summarize(found)
  assert len(summary.levels) == num_levels
  total = sum(
    summary.whole[f'top_lm_{part}_bits_per_byte'] for part in ('code', 'end')
  )
  for level in summary.levels:
    assert 0 < level['live_code_fraction'] <= 1
    total += level['expander_bits_per_byte'] + level['end_bits_per_byte']
  np.testing.assert_allclose(
    summary.whole['total_bits_per_byte'], total, rtol=1e-6
  )
