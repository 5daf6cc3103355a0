"""A level small enough to follow every one of its ids."""

import dataclasses
import functools
import pathlib
import runpy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import LevelConfig
from abstractinator.model.level import Abstractinator
from abstractinator.types import EOS_ID, NUM_BYTES, PAD_ID, Batch
from tests.helpers.greedy_lanes import decode_segments
from tests.helpers.implementations import XLA
from tests.helpers.jitted import init, jit_to_numpy

_DEFAULT = pathlib.Path(__file__).parents[2] / 'configs' / 'default.py'

_TINY = {
  'd_model': 16,
  'entropy_model.num_layers': 1,
  'entropy_model.num_heads': 2,
  'entropy_model.window': 5,
  'entropy_model.ffn_dim': 24,
  # Jumps of any size count, so that a dozen ids make several segments.
  'segmentation.rule': 'entropy_delta',
  'segmentation.threshold': 0.0,
  'segmentation.min_length': 2,
  'segmentation.max_length': 6,
  # Slots never run short: with the ends of documents, 2 ids a segment fit.
  'segmentation.capacity_length': 1.5,
  'encoder.num_layers': 1,
  'encoder.num_heads': 2,
  'encoder.window': 4,
  'encoder.ffn_dim': 24,
  'pooling.num_heads': 2,
  'quantizer.codebook_size': 12,
  'quantizer.code_dim': 6,
  'expander.num_layers': 2,
  'expander.num_heads': 2,
  'expander.ffn_dim': 24,
  'expander.window': 3,
}


def make_config(**changes: Any) -> LevelConfig:
  """Returns the default level made tiny; `expander__lookback=2` edits it."""
  level = runpy.run_path(str(_DEFAULT))['get_level']()
  edits = {k.replace('__', '.'): v for k, v in changes.items()}
  level.update_from_flattened_dict(_TINY | edits)
  return LevelConfig.from_dict(level.to_dict())


class Level:
  """An initialised level, whose methods are compiled once per shape.

  Attributes:
    config: Config of the level.
    model: The module.
    variables: Parameters and collections.
    call, compress: Methods of the level; arguments are variables and a batch.
    entropy_logits: Logits of the entropy model; arguments are variables, ids
      and documents.
    expand: The call of the expander, after variables.
    decode_segments: Greedy decoding of all segments; arguments are variables,
      vectors of codes and the lowest slots.
  """

  def __init__(self, config: LevelConfig, dtype: str):
    self.config = config
    self.model = Abstractinator(config, NUM_BYTES, XLA, jnp.dtype(dtype))
    self.variables = _make_variables(
      # Settings on which no parameter depends are the same for all levels.
      dataclasses.replace(
        config,
        expander=dataclasses.replace(
          config.expander, context='segment', byte_dropout=0.0
        ),
      )
    )
    apply = self.model.apply
    self.call = jit_to_numpy(apply)
    self.compress = jit_to_numpy(apply, method='compress')
    self.entropy_logits = jit_to_numpy(
      apply, method=lambda m, *args: m.compressor.entropy_model(*args).logits
    )
    self.expand = jit_to_numpy(apply, method=lambda m, *args: m.expander(*args))
    self.decode_segments = jit_to_numpy(
      apply,
      method=lambda m, memory, lowest: decode_segments(
        m.expander, memory, jnp.ones_like(lowest, bool), lowest
      ),
    )


@functools.cache
def _make_variables(config: LevelConfig) -> dict[str, Any]:
  model = Abstractinator(config, NUM_BYTES, XLA, jnp.float32)
  zeros = jnp.zeros((1, 8), jnp.int32)
  variables = dict(
    init(model, jax.random.key(0), Batch(zeros, zeros, zeros[:, 0]))
  )
  # Initial predictions are nearly uniform; these are not, so that entropies
  # jump and greedy ids and lengths differ.
  params = jax.tree.map(lambda x: x, variables['params'])
  expander = params['expander']
  heads = [params['compressor']['entropy_model']['head']]
  if 'head' in expander['vocabulary']:
    heads.append(expander['vocabulary']['head'])
  else:
    expander['vocabulary']['log_scale'] += 3.0
    # Else each id would predict itself: the same table embeds it.
    scale = expander['norm']['scale']
    expander['norm']['scale'] = scale.at[::2].multiply(-1.0)
  if 'end_head' in expander:
    heads.append(expander['end_head'])
  for head in heads:
    head['kernel'] = head['kernel'] * 20
  return variables | {'params': params}


_make_level = functools.cache(Level)


@pytest.fixture(scope='session')
def tiny_level():
  """Returns a function that builds a level; keywords edit its config."""

  def build(dtype: str = 'float32', **changes: Any) -> Level:
    return _make_level(make_config(**changes), dtype)

  return build


@pytest.fixture(scope='session')
def tiny_config():
  """Returns a function that builds the config of a tiny level."""
  return make_config


@pytest.fixture(scope='session')
def make_batch():
  """Returns a function that builds rows from lengths of their documents."""

  def build(lengths, size: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), size), PAD_ID, np.int32)
    document = np.full((len(lengths), size), -1, np.int32)
    for row, row_lengths in enumerate(lengths):
      begin = 0
      for number, length in enumerate(row_lengths):
        end = begin + length
        ids[row, begin : end - 1] = rng.integers(0, NUM_BYTES, length - 1)
        ids[row, end - 1] = EOS_ID
        document[row, begin:end] = number
        begin = end
    row_B = np.arange(len(lengths), dtype=np.int32)
    return Batch(*map(jnp.asarray, (ids, document, row_B)))

  return build
