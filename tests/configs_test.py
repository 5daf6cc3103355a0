"""Every file of `configs/`: the sizes in its docstring, and a step of it."""

import importlib

import jax
import pytest

from abstractinator.benchmarks import step as benchmark
from abstractinator.cli import config_file
from abstractinator.training.program import (
  batch_shapes,
  make_program,
  state_shapes,
)

NAMES = config_file.names()
# Parts and settings of these are in the others, in other sizes; on a CPU,
# configs that differ in kernels only trace the same.
AT_NIGHT = (
  'base',
  'default',
  'frozen_level0',
  'learned',
  'learned_faithful',
  'low_rate',
  'mla_pallas',
  'mla_xla',
  'pod_1b',
  'pyramid_2level',
  'pyramid_3level',
  'regular_pallas',
  'regular_pallas_512',
  'regular_pallas_512_entropy_frozen',
  'regular_pallas_entropy_frozen',
  'regular_xla',
  'stage2',
)
OFTEN = [
  pytest.param(name, marks=pytest.mark.nightly) if name in AT_NIGHT else name
  for name in NAMES
]


def with_prefix(count):
  """Returns three digits and an SI prefix: 1234567 is '1.23 M'."""
  digits = len(f'{float(f"{count:.3g}"):.0f}')
  power = (digits - 1) // 3
  places = 3 * power + 3 - digits
  return f'{count / 1000**power:.{places}f} {["", *"kMGTP"][power]}'


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
@pytest.mark.parametrize('name', OFTEN, scope='module')
def test_a_header_has_the_command_the_hardware_and_the_sizes(name):
  header = importlib.import_module(f'configs.{name}').__doc__
  assert f'--config=configs/{name}.py' in header or name == 'default'
  assert 'python train.py' in header
  assert '\nHardware: ' in header
  found = benchmark.sizes(config_file.load(name))
  said = f'Parameters: {found["parameters"]:,}. Expect: '
  said += f'{with_prefix(found["state bytes"])}B of state, '
  said += f'{with_prefix(found["FLOP a step"])}FLOP a step.'
  assert said in ' '.join(header.split())


@pytest.mark.parametrize('name', OFTEN, scope='module')
def test_a_step_keeps_the_shapes_of_the_state(name):
  # As a loop, all layers of a stack are traced as one.
  config = config_file.load(name, ['model.implementation.scan_layers=True'])
  state = state_shapes(config_file.load(name))
  program = make_program(config, 'cpu', total_steps=10_000)
  batch = batch_shapes(config)
  after, metrics = jax.eval_shape(program.step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  for new, old in zip(
    jax.tree.leaves(after), jax.tree.leaves(state), strict=True
  ):
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
  assert 'loss_total' in metrics.whole


def test_the_command_measures_the_named_configs(capsys):
  benchmark.main(['--sizes', 'tiny', 'entropy_pretrain'])
  head, _, *rows = capsys.readouterr().out.splitlines()[2:]
  names, tiny, entropy = (
    [cell.strip() for cell in line.split('|')[1:-1]] for line in (head, *rows)
  )
  found = dict(zip(names, tiny, strict=True))
  assert (found['config'], found['parameters']) == ('tiny', '82304')
  assert found['expander'] == '31552'
  # Its only part is the entropy model of the config that loads it.
  size = benchmark.sizes(config_file.load('entropy_frozen'))['entropy_model']
  found = dict(zip(names, entropy, strict=True))
  assert found['parameters'] == found['entropy_model'] == str(size)
  assert found['expander'] == ''


def test_a_state_is_little_more_than_parameters_and_their_two_moments():
  found = benchmark.sizes(config_file.load('entropy_pretrain'))
  moments = 3 * 4 * found['parameters']
  assert moments < found['state bytes'] < 1.01 * moments


def test_frozen_parts_have_no_moments():
  found = benchmark.sizes(config_file.load('stage2'))
  moments = 4 * (found['parameters'] + 2 * found['top_lm'])
  # The codebook and its statistics take the rest.
  assert moments < found['state bytes'] < 1.15 * moments
