"""Every file of `configs/`: what it says of itself, and a step of it."""

import importlib

import jax
import pytest

from abstractinator.benchmarks import sizes
from abstractinator.training.program import make_program
from abstractinator.types import Batch

NAMES = sizes.names()


def test_there_is_a_config_for_every_experiment():
  assert set(NAMES) >= {
    'base',
    'regular_pallas',
    'regular_xla',
    'mla_pallas',
    'mla_xla',
    'regular_pallas_512',
    'regular_pallas_entropy_frozen',
    'regular_pallas_512_entropy_frozen',
    'frozen_level0',
    'tiny_2level',
    'pyramid_2level',
    'pyramid_3level',
    'stage1',
    'stage2',
    'entropy_pretrain',
  }


@pytest.mark.parametrize('name', NAMES)
def test_a_header_has_the_command_the_hardware_and_the_size(name):
  header = importlib.import_module(f'configs.{name}').__doc__
  assert f'--config=configs/{name}.py' in header or name == 'default'
  assert 'python train.py' in header
  assert '\nHardware: ' in header
  total = sum(sizes.parameter_counts(sizes.load(name)).values())
  assert f'Parameters: {total:,}.' in ' '.join(header.split())


@pytest.mark.parametrize('name', NAMES)
def test_a_step_keeps_the_shapes_of_the_state(name):
  config = sizes.load(name)
  program = make_program(config, 'cpu', total_steps=10_000)
  state = jax.eval_shape(program.init, jax.random.key(0))
  data = config.data
  ids_BS = jax.ShapeDtypeStruct(
    (data.batch_size, data.sequence_length), 'int32'
  )
  row_B = jax.ShapeDtypeStruct((data.batch_size,), 'int32')
  batch = Batch(ids_BS, ids_BS, row_B)
  after, metrics = jax.eval_shape(program.step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(
    jax.tree.leaves(after), jax.tree.leaves(state), strict=True
  ):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert 'loss_total' in metrics


def test_the_command_counts_what_is_named(capsys):
  sizes.main(['tiny', 'entropy_pretrain'])
  tiny, entropy = capsys.readouterr().out.splitlines()
  assert tiny.startswith('tiny: 82,304 (')
  assert 'expander 31,552' in tiny
  # It has the entropy model of the config that loads it, and nothing else.
  counts = sizes.parameter_counts(sizes.load('entropy_frozen'))
  size = f'{counts["entropy_model"]:,}'
  assert entropy == f'entropy_pretrain: {size} (entropy_model {size})'
