"""Every file of `configs/`: the sizes in its docstring, and a step of it."""

import importlib

import jax
import pytest

from abstractinator.benchmarks import step as benchmark
from abstractinator.cli import config_file
from abstractinator.training import flops
from abstractinator.training.program import make_program

NAMES = config_file.names()
# On a CPU, configs that differ in kernels only trace the same. The parts and
# settings of these are in the others, in other sizes.
SAME_STEPS = (
  'default',
  'mla_xla',
  'pyramid_2level',
  'regular_pallas_512',
  'regular_pallas_entropy_frozen',
  'regular_xla',
)


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


# Module scope keeps the tests of a name together: its state is traced once.
@pytest.mark.parametrize('name', NAMES, scope='module')
def test_a_header_has_the_command_the_hardware_and_the_sizes(name):
  header = importlib.import_module(f'configs.{name}').__doc__
  assert f'--config=configs/{name}.py' in header or name == 'default'
  assert 'python train.py' in header
  assert '\nHardware: ' in header
  found = benchmark.measure_sizes(config_file.load(name))
  said = f'Parameters: {sum(found.parameters.values()):,}. Expect: '
  said += f'{benchmark.with_prefix(found.state_bytes)}B of state, '
  said += f'{benchmark.with_prefix(found.step_flops)}FLOP a step.'
  assert said in ' '.join(header.split())


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.nightly)
    if name in SAME_STEPS
    else name
    for name in NAMES
  ],
  scope='module',
)
def test_a_step_keeps_the_shapes_of_the_state(name):
  # As a loop, all layers of a stack are traced as one.
  config = config_file.load(name, ['model.implementation.scan_layers=True'])
  state = flops.abstract_state(config_file.load(name))
  program = make_program(config, 'cpu', total_steps=10_000)
  batch = flops.abstract_batch(config)
  after, metrics = jax.eval_shape(program.step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(
    jax.tree.leaves(after), jax.tree.leaves(state), strict=True
  ):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert 'loss_total' in metrics


def test_the_command_measures_the_named_configs(capsys):
  benchmark.main(['--sizes', 'tiny', 'entropy_pretrain'])
  tiny, entropy = capsys.readouterr().out.splitlines()
  assert tiny.startswith('tiny: Parameters: 82,304 (')
  assert 'expander 31,552' in tiny
  # Its only part is the entropy model of the config that loads it.
  found = benchmark.measure_sizes(config_file.load('entropy_frozen'))
  size = found.parameters['entropy_model']
  start = 'entropy_pretrain: Parameters: '
  assert entropy.startswith(f'{start}{size:,} (entropy_model {size:,}). Expect')


def test_a_state_is_little_more_than_parameters_and_their_two_moments():
  found = benchmark.measure_sizes(config_file.load('entropy_pretrain'))
  moments = 3 * 4 * sum(found.parameters.values())
  assert moments < found.state_bytes < 1.01 * moments


def test_frozen_parts_have_no_moments():
  found = benchmark.measure_sizes(config_file.load('stage2'))
  num_frozen = sum(found.parameters.values()) - found.parameters['top_lm']
  moments = 4 * (3 * found.parameters['top_lm'] + num_frozen)
  # The codebook and its statistics take the rest.
  assert moments < found.state_bytes < 1.15 * moments


@pytest.mark.parametrize(
  ('count', 'text'),
  [(82, '82.0 '), (999, '999 '), (1_234, '1.23 k'), (999_999, '1.00 M')],
)
def test_counts_have_three_digits(count, text):
  assert benchmark.with_prefix(count) == text
