"""Whole training steps of large configs, lowered for devices not at hand."""

import jax
import pytest

from abstractinator.benchmarks import sizes
from abstractinator.training.program import make_program
from abstractinator.types import Batch
from tests.lowering import lowered

KERNELS = {'tpu': 'tpu_custom_call', 'gpu': '__gpu$xla.gpu.triton'}


@pytest.mark.parametrize('platform', ['tpu', 'gpu'])
@pytest.mark.parametrize('name', ['regular_pallas', 'mla_pallas'])
def test_a_step_lowers_with_its_kernels(name, platform):
  """Forward, and two backward, of each kind of attention that there is."""
  config = sizes.load(name)
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
