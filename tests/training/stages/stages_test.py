"""Second stages, and entropy models that are loaded from other runs."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from abstractinator.objective import metrics
from abstractinator.runs import sharding
from abstractinator.runs.state import variables_of
from abstractinator.training.loop import Run
from abstractinator.training.program import make_program
from configs import entropy_frozen, entropy_pretrain, stage1, stage2
from tests.helpers import tiny_run
from tests.helpers.tiny_stages import (
  assert_top_lm_alone_moved,
  by_path,
  changed,
  make_mesh,
  small,
  take_steps,
  train,
)


@pytest.fixture(scope='module')
def second(base, corpus, tmp_path_factory):
  """A trained second stage; the run it was loaded from is deleted."""
  folder = tmp_path_factory.mktemp('second')
  source, workdir = folder / 'source', folder / 'run'
  shutil.copytree(base[0], source)

  def edit(values):
    values.load_base_from = str(source)

  config = small(stage2.get_config(), corpus, edit)
  trained = train(config, workdir)
  shutil.rmtree(source)
  return config, workdir, trained


def assert_top_lm_alone_is_trained(before, first, last, run):
  assert_top_lm_alone_moved(before, first, last)
  moments = by_path(run._abstract.opt_state)
  kept = {path for path in moments if '/compressor/' in path}
  assert not kept
  assert any('/top_lm/' in path for path in moments)


def test_the_second_stage_trains_the_top_lm_alone(base, second):
  first, last, summary, run = second[2]
  assert_top_lm_alone_is_trained(base[1], first, last, run)
  assert np.isfinite(summary.whole['loss_total'])
  assert summary.whole['top_lm_expander_bits_per_byte'] > 0


@pytest.mark.nightly
def test_steps_of_a_continuous_one_train_it_alone(base, corpus, tmp_path):
  def edit(values):
    values.load_base_from = str(base[0])
    values.model.top_lm.mode = 'continuous'

  config = small(stage2.get_config(), corpus, edit)
  first, last, found, run = take_steps(config, tmp_path)
  assert_top_lm_alone_is_trained(base[1], first, last, run)
  summary = metrics.summarize(found).whole
  assert np.isfinite(summary['loss_total'])
  assert summary['top_lm_expander_bits_per_byte'] > 0


def test_a_stage_goes_on_without_its_base_but_from_no_other(
  base, second, tmp_path
):
  """Its checkpoints hold the parameters that were loaded."""
  config, finished, _ = second
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '6')
  run = Run(config, str(workdir))
  state = run.start()
  assert int(state.step) == 3
  loaded = by_path(jax.device_get(variables_of(state)))
  for path, leaf in by_path(base[1]).items():
    np.testing.assert_array_equal(leaf, loaded[path], err_msg=path)
  other = dataclasses.replace(config, load_base_from=str(base[0]))
  with pytest.raises(
    ValueError, match=r'load_base_from: got .* allowed: .*source'
  ):
    Run(other, str(tmp_path / 'elsewhere')).start(str(workdir))


@pytest.mark.nightly
def test_averages_are_loaded_and_stay_where_frozen(
  corpus, tmp_path, monkeypatch
):
  """The mesh has all devices."""
  monkeypatch.setattr(sharding, 'make_mesh', make_mesh)

  def average(values):
    values.optimizer.ema_decay = 0.9

  def load(values):
    average(values)
    values.load_base_from = str(tmp_path / 'base')

  def with_ema(state):
    return state.replace(ema=jax.tree.map(lambda x: x + 0.1, state.params))

  config = small(stage1.get_config(), corpus, average)
  tiny_run.save(tmp_path / 'base', config, edit=with_ema)
  expected = with_ema(tiny_run.random_state(config, seed=3)).ema
  run = Run(small(stage2.get_config(), corpus, load), str(tmp_path / 'run'))
  state = run.start()
  assert not changed(state.ema, state.params)
  assert run._mesh.devices.size > 1
  rows = run._train_batches(0)
  for _ in range(3):
    state, _ = run._step(state, sharding.shard_batch(next(rows), run._mesh))
  found = jax.device_get(state.ema)
  assert any(
    path.startswith('top_lm/') for path in changed(found, state.params)
  )
  del found['top_lm']
  assert not changed(found, expected)


@pytest.mark.nightly
def test_predicted_codes_teach_through_the_frozen_expander(
  base, corpus, tmp_path
):
  def edit(values):
    values.load_base_from = str(base[0])
    values.loss.top_lm_code = values.loss.top_lm_end = 0.0
    values.loss.top_lm_expander = 1.0
    values.optimizer.weight_decay = 0.0

  first, last, found, _ = take_steps(
    small(stage2.get_config(), corpus, edit), tmp_path
  )
  moved = changed(first, last)
  assert 'params/top_lm/code_head/logits_0/kernel' in moved
  assert 'params/top_lm/end_head/kernel' not in moved
  summary = metrics.summarize(found)
  assert summary.whole['top_lm_expander_bits_per_byte'] > 0


@pytest.mark.nightly
def test_a_pretrained_entropy_model_stays_as_it_is(corpus, tmp_path):
  source, workdir = tmp_path / 'source', tmp_path / 'run'
  _, trained, summary, _ = train(
    small(entropy_pretrain.get_config(), corpus), source
  )
  (compressor,) = trained['params']['level_0'].values()
  assert set(compressor) == {'entropy_model'}
  assert 'entropy_model_bits_per_byte' in summary.levels[0]
  assert 'loss_total' in summary.whole
  assert 'free_running_byte_accuracy' not in summary.whole

  def edit(values):
    values.model.levels[0].load_entropy_model_from = str(source)

  first, last, _, _ = take_steps(
    small(entropy_frozen.get_config(), corpus, edit), workdir
  )
  for variables in (first, last):
    loaded = variables['params']['level_0']['compressor']['entropy_model']
    assert not changed(compressor['entropy_model'], loaded)
  assert 'params/level_0/compressor/quantizer/down/kernel' in changed(
    first, last
  )


@pytest.mark.parametrize('freeze', [True, False])
def test_an_entropy_model_has_moments_unless_it_is_frozen(freeze, corpus):
  """The optimizer has no state for frozen parameters."""

  def edit(values):
    level = values.model.levels[0]
    level.load_entropy_model_from = 'elsewhere'
    level.freeze_entropy_model = freeze

  config = small(entropy_frozen.get_config(), corpus, edit)
  program = make_program(config, 'cpu', total_steps=6)
  state = jax.eval_shape(program.init, jax.random.key(0))
  moments = by_path(state.opt_state)
  assert any('/entropy_model/' in path for path in moments) != freeze
  assert any('/encoder/' in path for path in moments)


@pytest.mark.nightly
def test_a_loaded_entropy_model_that_is_not_frozen_learns_on(corpus, tmp_path):
  source, workdir = tmp_path / 'source', tmp_path / 'run'
  config = small(entropy_pretrain.get_config(), corpus)
  tiny_run.save(source, config)

  def edit(values):
    level = values.model.levels[0]
    level.load_entropy_model_from = str(source)
    level.freeze_entropy_model = False

  first, last, _, _ = take_steps(
    small(entropy_frozen.get_config(), corpus, edit), workdir
  )
  moved = changed(first, last)
  assert any('entropy_model' in path for path in moved)
