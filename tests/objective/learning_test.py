"""Rules by which frozen parts and the levels of a curriculum learn."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from abstractinator.config import LossConfig, RunConfig
from abstractinator.objective.by_level import ByLevel
from abstractinator.objective.learning import (
  Learning,
  fitting,
  require_same_curriculum,
)
from configs import default, tiny_2level
from tests.helpers import tiny_pyramid

INTERVAL = 10
TERMS = ByLevel(({'end': 2.0}, {'end': 2.0}), {'top_lm_end': 2.0})


def weights(interval, stops):
  values = default.get_config().loss.to_dict()
  values |= {'curriculum_steps': interval, 'curriculum_stops': stops}
  return LossConfig.from_dict(values)


def two_levels():
  values = json.loads(tiny_2level.get_config().to_json_best_effort())
  return RunConfig.from_dict(values)


def make_learning(interval, stops, num_levels=2, top_lm='discrete'):
  config = tiny_pyramid.make_config(*[{}] * num_levels, top_lm=top_lm)
  return Learning(config, weights(interval, stops))


def ends(terms):
  """The `end` terms: a level's '0' and '1', the top LM's 't'."""
  return {str(number): x['end'] for number, x in enumerate(terms.levels)} | {
    't': terms.whole['top_lm_end']
  }


@pytest.mark.parametrize(
  ('stops', 'names'),
  [
    (False, {0: '0', 9: '0', 10: '01', 19: '01', 20: '01t', 99: '01t'}),
    (True, {0: '0', 9: '0', 10: '1', 19: '1', 20: 't', 99: 't'}),
  ],
)
def test_levels_join_the_objective_one_after_the_other(stops, names):
  learning = make_learning(INTERVAL, stops)
  for step, learn in names.items():
    found = ends(learning.learned(TERMS, jnp.int32(step)))
    assert found == {name: 2.0 * (name in learn) for name in '01t'}
  # Evaluation knows no step.
  assert learning.learned(TERMS) == TERMS


def test_a_top_lm_learns_after_a_single_level():
  learning = make_learning(INTERVAL, True, num_levels=1)
  terms = ByLevel(TERMS.levels[:1], TERMS.whole)
  before = {'params': {'level_0': jnp.zeros(2), 'top_lm': jnp.zeros(3)}}
  after = jax.tree.map(lambda x: x + 1, before)
  for step, name, learn in ((9, 'level_0', '0'), (10, 'top_lm', 't')):
    restored = learning.restore(after, before, jnp.int32(step))['params']
    assert [key for key in restored if restored[key].all()] == [name]
    found = ends(learning.learned(terms, jnp.int32(step)))
    assert found == {name: 2.0 * (name == learn) for name in '0t'}


def test_without_a_top_lm_the_last_level_learns_to_the_end():
  learning = make_learning(INTERVAL, True, top_lm=None)
  for step, expected in ((9, [2.0, 0.0]), (99, [0.0, 2.0])):
    found = learning.learned(TERMS, jnp.int32(step))
    assert [x['end'] for x in found.levels] == expected


@pytest.mark.parametrize(
  ('total_steps', 'interval'), [(1401, 700), (1400, 466), (40, 13), (2, 0)]
)
def test_a_curriculum_fits_into_the_run(total_steps, interval):
  config = two_levels()
  fits = fitting(config, total_steps)
  assert fits.loss.curriculum_steps == interval
  assert fits.loss.curriculum_stops == (interval > 0)
  assert (fits is config) == (interval == 700)
  # The last of three parts learns before the end.
  learning = Learning(fits.model, fits.loss)
  assert ends(learning.learned(TERMS, jnp.int32(total_steps - 1)))['t'] == 2.0


def test_a_run_of_another_length_has_the_curriculum_it_began_with():
  config = two_levels()
  require_same_curriculum(config, 3000, config, 6000)
  require_same_curriculum(config, 1000, config, 1001)
  with pytest.raises(
    ValueError, match=r'got 3000 steps, .*_steps is 700, allowed: .* stays 333;'
  ):
    require_same_curriculum(config, 1000, config, 3000)


def test_without_an_interval_everything_learns():
  learning = make_learning(0, False)
  before, after = ({'vq': {'level_1': jnp.full(2, x)}} for x in (0.0, 1.0))
  assert learning.learned(TERMS, jnp.int32(0)) == TERMS
  restored = learning.restore(after, before, jnp.int32(0))
  assert restored['vq']['level_1'].all()


@pytest.mark.parametrize(
  ('frozen', 'moved', 'terms'),
  [
    ('freeze', {'top_lm'}, set()),
    (
      'freeze_entropy_model',
      {'level_0/compressor/pooling', 'level_0/expander', 'top_lm'},
      {'expander'},
    ),
  ],
)
def test_frozen_parts_stay_and_have_no_terms(frozen, moved, terms):
  config = tiny_pyramid.make_config({})
  level = dataclasses.replace(config.levels[0], **{frozen: True})
  config = dataclasses.replace(config, levels=(level,))
  learning = Learning(config, weights(0, False))
  compressor = {'entropy_model': jnp.zeros(()), 'pooling': jnp.zeros(())}
  params = {
    'level_0': {'compressor': compressor, 'expander': jnp.zeros(())},
    'top_lm': jnp.zeros(()),
  }
  after = {'params': jax.tree.map(lambda x: x + 1, params)}
  restored = learning.restore(after, {'params': params})['params']
  found = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    if leaf.all()
  }
  assert found == moved
  gradient = jax.grad(
    lambda p: sum(jax.tree.leaves(learning.stop_gradients(p)))
  )(params)
  assert jax.tree.map(float, gradient) == jax.tree.map(float, restored)
  of_level = {'entropy_model': 1.0, 'gaussian': 1.0, 'expander': 1.0}
  learned = learning.learned(ByLevel((of_level,), TERMS.whole))
  assert set(learned.levels[0]) == terms
  assert learned.whole == TERMS.whole
