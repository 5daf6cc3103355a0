import dataclasses

import pytest

from abstractinator.benchmarks.flat_model import flat_config
from abstractinator.cli import config_file
from abstractinator.training.flops import model_flops


@pytest.mark.parametrize(
  'name', ['tiny', pytest.param('default', marks=pytest.mark.nightly)]
)
def test_a_flat_model_takes_the_flops_of_all_parts_of_a_hierarchy(name):
  config = config_file.load(name, ['data.sequence_length=64'])
  label, flat = flat_config(config)
  assert model_flops(flat) == pytest.approx(model_flops(config), rel=0.01)
  (level,) = flat.model.levels
  stack = level.entropy_model
  assert label == f'flat-{stack.num_layers}x{level.d_model}x{stack.ffn_dim}'
  assert stack.num_layers == 1 or 16 <= level.d_model / stack.num_layers <= 64
  (like,) = config_file.load('flat').model.levels
  assert level.d_model / stack.num_heads == 32
  assert stack.window == like.entropy_model.window
  assert flat.objective == 'entropy_model'
  assert (flat.data, flat.optimizer) == (config.data, config.optimizer)


def test_a_part_of_a_hierarchy_has_no_flat_model():
  config = config_file.load('tiny')
  config = dataclasses.replace(config, objective='entropy_model')
  with pytest.raises(ValueError, match="objective: got 'entropy_model'"):
    flat_config(config)
