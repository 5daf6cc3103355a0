"""Untrained models whose predictions differ, for tests of compression."""

import dataclasses
import functools
import json

import jax

from abstractinator.compression.coding_shapes import CodingShapes
from abstractinator.compression.hierarchy_model import HierarchyModel
from abstractinator.config import RunConfig
from abstractinator.runs.state import variables_of
from tests.helpers import tiny_dictionary, tiny_run

ROW = 128
# Settings of a first level that the entropy model divides, and of its expander.
BASE = {
  'segmentation.rule': 'entropy_delta',
  'segmentation.threshold': 0.0,
  'segmentation.target_length': None,
  'segmentation.max_length': 8,
  'segmentation.capacity_length': 1.0,
  'expander.base': 'entropy_model',
  'expander.code_dim': None,
  'expander.context': 'window',
  'expander.ends': 'entropy',
}


def louder(variables):
  """Returns parameters that make predictions depend on all inputs."""

  def leaf(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if 'top_lm' in name:
      return x * 1.7
    if 'expander' not in name:
      return x
    return x + 2 if name.endswith('log_scale') else x * 1.7

  return jax.tree_util.tree_map_with_path(leaf, variables)


def make(config, seed=3, candidates=1, **shapes):
  """Returns a model that encodes a row at a time, and its variables."""
  variables = louder(variables_of(tiny_run.random_state(config, seed)))
  if config.model.levels[0].quantizer.kind == 'dictionary':
    variables = tiny_dictionary.filled(variables)
  shapes = CodingShapes(row_ids=ROW, batch_ids=ROW, **shapes)
  return HierarchyModel(config, variables, shapes, candidates), variables


def pyramid_config():
  values = json.loads(json.dumps(tiny_run.pyramid_config().to_dict()))
  values['data']['sequence_length'] = ROW
  for level in values['model']['levels']:
    level['quantizer'] |= {'kind': 'rvq', 'codebook_size': 8, 'depth': 2}
  return RunConfig.from_dict(values)


def config_of(context='segment', **kwargs):
  """Returns the config of a level whose rows are one lane."""
  config = tiny_run.config(context=context, **kwargs)
  (level,) = config.model.levels
  expander = dataclasses.replace(level.expander, window=16)
  level = dataclasses.replace(level, expander=expander)
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, sequence_length=ROW),
    model=dataclasses.replace(config.model, levels=(level,)),
  )


def edited(config, *changes, top=None):
  """Returns a config with changed settings of each level, and of the top LM."""
  values = json.loads(json.dumps(config.to_dict()))
  for level, edits in zip(values['model']['levels'], changes, strict=True):
    for name, value in edits.items():
      *sections, last = name.split('.')
      functools.reduce(dict.__getitem__, sections, level)[last] = value
  if top is not None:
    values['model']['top_lm'] |= top
  return RunConfig.from_dict(values)


def stream_config(bottom=None, *above, top=None):
  """Returns the config of a stream of codes; see `edited` for the arguments."""
  config = tiny_run.pyramid_config(1 + len(above))
  base = 'none' if above else 'entropy_model'
  data = dataclasses.replace(config.data, sequence_length=ROW)
  bottom = BASE | {'expander.conditioning': 'top_lm'} | (bottom or {})
  return edited(
    dataclasses.replace(config, data=data),
    bottom,
    *above,
    top={'inputs': 'segments', 'base': base} | (top or {}),
  )
