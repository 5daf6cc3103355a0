"""Training steps of large configs, lowered for devices that are not at hand."""

import importlib
import json

import jax
import pytest

from abstractinator.config import RunConfig
from abstractinator.training.program import make_program
from abstractinator.types import Batch
from tests.helpers.lowering import lowered

KERNELS = {'tpu': 'tpu_custom_call', 'gpu': '__gpu$xla.gpu.triton'}


def shallow(values):
  """Config values with one layer in each stack: all layers are alike."""
  if isinstance(values, dict):
    return {
      k: min(v, 1) if k == 'num_layers' else shallow(v)
      for k, v in values.items()
    }
  return list(map(shallow, values)) if isinstance(values, list) else values


@pytest.mark.parametrize(
  ('name', 'platform'),
  [
    pytest.param(
      name,
      platform,
      marks=[pytest.mark.nightly] if name == 'mla_pallas' else [],
    )
    for name in ('regular_pallas', 'mla_pallas')
    for platform in KERNELS
  ],
)
def test_a_step_lowers_with_its_kernels(name, platform):
  """Each kind of attention has one forward and two backward kernels."""
  values = importlib.import_module(f'configs.{name}').get_config()
  values = shallow(json.loads(values.to_json_best_effort()))
  config = RunConfig.from_dict(values)
  program = make_program(config, platform, total_steps=10_000)
  state = jax.eval_shape(program.init, jax.random.key(0))
  shape = config.data.batch_size, config.data.sequence_length
  ids_BS = jax.ShapeDtypeStruct(shape, 'int32')
  batch = Batch(ids_BS, ids_BS, jax.ShapeDtypeStruct(shape[:1], 'int32'))
  text = lowered(
    program.step,
    state,
    batch,
    platform='cuda' if platform == 'gpu' else platform,
  )
  for kernel in ('forward', 'backward_queries', 'backward_keys'):
    assert f'attention_{kernel}' in text
  assert text.count(f'@{KERNELS[platform]}') >= 6
