"""Exported models to load from, and refusal of runs that do not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.runs import exported
from abstractinator.runs import load_parts as base_runs
from abstractinator.runs.load import open_source
from abstractinator.runs.state import variables_of
from abstractinator.training.loop import Run
from configs import (
  entropy_frozen,
  entropy_pretrain,
  stage1,
  stage2,
  tiny_2level,
)
from tests.helpers import tiny_run
from tests.helpers.tiny_stages import changed, small


def start(config, workdir):
  """Error message of a run that cannot start."""
  with pytest.raises(ValueError) as error:
    Run(config, str(workdir)).start()
  assert not workdir.exists() or not list(workdir.iterdir())
  message = str(error.value)
  assert '\n' not in message
  return message


@pytest.fixture(scope='module')
def second_begun(corpus, tmp_path_factory):
  """State of step 0 of a second stage, and its shapes."""
  workdir = tmp_path_factory.mktemp('begun')
  run = Run(small(stage2.get_config(), corpus), str(workdir))
  return run._init(jax.random.key(0)), run._abstract


@pytest.mark.parametrize(
  ('case', 'parts'),
  [
    ('nowhere', ('load_base_from: got None', 'directory of a run')),
    ('missing', ('load_base_from: ', 'nothing_here', 'directory of a run')),
    ('entropy model', ('/codebook_KC is not in the checkpoint',)),
    (
      'part',
      ('params/level_0/compressor/pooling/', ' is not in the checkpoint'),
    ),
    (
      'more',
      ('params/level_0/compressor/extra', 'is in the checkpoint but not'),
    ),
    ('width', ('model.levels[0].d_model: got 16', 'allowed: 32 as in')),
    ('window', ('model.levels[0].encoder: got', "'window': 32")),
    ('shape', ('quantizer/down/kernel is float32[16, 5]',)),
  ],
)
def test_a_base_that_does_not_fit_is_refused(
  case, parts, second_begun, corpus, tmp_path
):
  def name(values):
    values.load_base_from = {
      'nowhere': None,
      'missing': f'{tmp_path}/nothing_here',
    }.get(case, f'{tmp_path}/base')

  def edit(values):
    (level,) = values.model.levels
    if case == 'width':
      level.d_model = 32
    if case == 'window':
      level.encoder.window = 5

  wanted = small(stage2.get_config(), corpus, name)
  source = entropy_pretrain if case == 'entropy model' else stage1
  config = small(source.get_config(), corpus, edit)
  if case == 'entropy model':
    # With other settings of the level, these would be refused first.
    level = dataclasses.replace(
      wanted.model.levels[0], freeze=False, freeze_entropy_model=False
    )
    model = dataclasses.replace(config.model, levels=(level,))
    config = dataclasses.replace(config, model=model)

  def broken(state):
    level = state.params['level_0']
    compressor = dict(level['compressor'])
    if case == 'part':
      del compressor['pooling']
    if case == 'more':
      compressor['extra'] = jnp.zeros(3)
    if case == 'shape':
      down = {'kernel': jnp.zeros((16, 5))}
      compressor['quantizer'] = compressor['quantizer'] | {'down': down}
    params = {'level_0': level | {'compressor': compressor}}
    return state.replace(params=params)

  if case not in ('nowhere', 'missing'):
    tiny_run.save(tmp_path / 'base', config, edit=broken)
  if case == 'nowhere':
    message = start(wanted, tmp_path / 'run')
  else:
    # `Run.start` calls this.
    with pytest.raises(ValueError) as error:
      base_runs.load(*second_begun, wanted)
    message = str(error.value)
  assert '\n' not in message
  for part in parts:
    assert part in message


def test_a_base_of_fewer_levels_is_refused(corpus, tmp_path):
  config = small(stage1.get_config(), corpus)
  tiny_run.save(tmp_path / 'base', config)
  level = dataclasses.replace(config.model.levels[0], freeze=True)
  upper = small(tiny_2level.get_config(), corpus).model.levels[1]
  upper = dataclasses.replace(upper, freeze=True)
  wanted = small(stage2.get_config(), corpus)
  model = dataclasses.replace(wanted.model, levels=(level, upper))
  wanted = dataclasses.replace(
    wanted, model=model, load_base_from=f'{tmp_path}/base'
  )
  state = tiny_run.random_state(wanted, seed=0)
  with pytest.raises(
    ValueError,
    match=r'a run of 1 levels, allowed: one that has model\.levels\[1',
  ):
    base_runs.load(state, jax.eval_shape(lambda: state), wanted)


def test_a_frozen_entropy_model_has_to_come_from_somewhere(corpus, tmp_path):
  config = small(entropy_frozen.get_config(), corpus)
  message = start(config, tmp_path / 'run')
  assert 'model.levels[0].load_entropy_model_from: got None' in message


def test_a_base_may_be_an_exported_model(second_begun, corpus, tmp_path):
  base, folder = tmp_path / 'base', tmp_path / 'exported'
  tiny_run.save(base, small(stage1.get_config(), corpus))
  source = open_source(str(base))
  exported.write(
    str(folder),
    source.config,
    source.all_variables(),
    {'step': source.step},
    card='',
    dtype='float32',
  )
  begun, loaded = second_begun[0], []
  for path in (base, folder):
    wanted = small(
      stage2.get_config(),
      corpus,
      lambda values, path=path: values.update(load_base_from=str(path)),
    )
    loaded.append(variables_of(base_runs.load(*second_begun, wanted)))
  jax.tree.map(np.testing.assert_array_equal, *loaded)
  assert changed(loaded[0], variables_of(begun))
