"""Alarms: their limits, and runs that are broken on purpose."""

import contextlib
import dataclasses
import json

import jax
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from abstractinator.config import RunConfig
from abstractinator.evaluation import units
from abstractinator.objective.by_level import ByLevel
from abstractinator.runs import sharding
from abstractinator.training import health
from abstractinator.training.loop import Run
from configs import tiny, tiny_2level

SANE = ByLevel(
  (
    {
      'entropy_model_bits_per_byte': 2.5,
      'expander_bits_per_byte': 2.0,
      'bytes_per_segment': 4.5,
      'codebook_perplexity': 30.0,
      'overflow_fraction': 0.0,
    },
  ),
  {'gradient_norm': 1.0},
)


def config_of(values) -> RunConfig:
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


CONFIG = config_of(tiny.get_config())


def test_every_alarm_has_a_meaning():
  names = {*health.TRAIN_ALARMS, *health.EVAL_ALARMS, 'non_finite'}
  assert set(units.MEANINGS['alarms']) == names


def changed(name, value):
  """Sane metrics but for one, which has this value."""
  is_whole = name in ('gradient_norm', 'total_bits_per_byte')
  one = {name: value}
  return SANE | (ByLevel(whole=one) if is_whole else ByLevel((one,)))


def raised(alarms):
  return [alarm.tag for alarm in alarms]


@pytest.mark.parametrize(
  ('name', 'last_good', 'bad', 'tag'),
  [
    # There are 64 codes; the limit is 2 at least.
    ('codebook_perplexity', 2.0, 1.99, 'codebook_collapse'),
    ('overflow_fraction', 0.05, 0.051, 'overflow'),
    ('bytes_per_segment', 1.1, 1.09, 'segments_of_one_id'),
    # A segment has 16 ids at most.
    ('bytes_per_segment', 15.2, 15.3, 'segments_of_max_length'),
    # Gradients are clipped to a norm of 1.
    ('gradient_norm', 50.0, 50.1, 'exploding_gradients'),
    ('entropy_model_bits_per_byte', 10.0, 10.1, 'exploding_gradients'),
    ('expander_bits_per_byte', 10.0, 10.1, 'exploding_gradients'),
  ],
)
def test_training(name, last_good, bad, tag):
  assert raised(health.train_alarms(CONFIG, 100, SANE)) == []
  good, bad = changed(name, last_good), changed(name, bad)
  assert raised(health.train_alarms(CONFIG, 100, good)) == []
  (alarm,) = health.train_alarms(CONFIG, 100, bad)
  assert alarm.tag == tag
  assert '; try' in alarm.message
  # There are no alarms before `health.after_steps`.
  assert not health.train_alarms(CONFIG, 99, bad)


@pytest.mark.parametrize(
  ('name', 'value', 'tag'),
  [
    ('expander_bits_per_byte_shuffled_codes', 2.05, None),
    ('expander_bits_per_byte_shuffled_codes', 2.03, 'codes_ignored'),
    ('entropy_model_bits_per_byte', 3.1, None),
    ('entropy_model_bits_per_byte', 3.2, 'validation_drift'),
    ('expander_bits_per_byte', 2.6, 'validation_drift'),
    # It is not among the metrics of training, so there is no drift.
    ('total_bits_per_byte', 5.0, None),
  ],
)
def test_evaluation(name, value, tag):
  codes = {
    'expander_bits_per_byte_true_codes': 2.0,
    'expander_bits_per_byte_shuffled_codes': 3.0,
  }
  held_out = SANE | ByLevel((codes,)) | changed(name, value)
  found = health.eval_alarms(CONFIG, 100, held_out, SANE)
  assert raised(found) == ([] if tag is None else [tag])
  assert all('; try' in alarm.message for alarm in found)
  assert not health.eval_alarms(CONFIG, 99, held_out, SANE)


def test_a_dictionary_has_more_to_spell_in_other_text():
  values = tiny.get_config()
  (level,) = values.model.levels
  level.segmentation.rule, level.quantizer.kind = 'space', 'dictionary'
  held_out = SANE | changed('expander_bits_per_byte', 2.6)
  assert not health.eval_alarms(config_of(values), 100, held_out, SANE)
  held_out = SANE | changed('entropy_model_bits_per_byte', 3.2)
  found = health.eval_alarms(config_of(values), 100, held_out, SANE)
  assert raised(found) == ['validation_drift']


def test_of_several_levels_each_has_its_own():
  config = config_of(tiny_2level.get_config())
  sane = ByLevel(({'bytes_per_segment': 2.0}, {'bytes_per_segment': 4.0}))
  assert not health.train_alarms(config, 5000, sane)
  # A segment of the second level has 2.1 bytes, that is 1.05 segments of the
  # first one.
  bad = {'bytes_per_segment': 2.1, 'overflow_fraction': 1}
  bad = sane | ByLevel(({}, bad))
  tags = ['level1/overflow', 'level1/segments_of_one_id']
  assert raised(health.train_alarms(config, 5000, bad)) == tags
  # The second level joins 700 steps after the first one.
  assert not health.train_alarms(config, 799, bad)
  assert set(tags) < set(health.alarm_tags(config, health.TRAIN_ALARMS))


def with_quantizer(**changes):
  (level,) = CONFIG.model.levels
  quantizer = dataclasses.replace(level.quantizer, **changes)
  level = dataclasses.replace(level, quantizer=quantizer)
  model = dataclasses.replace(CONFIG.model, levels=(level,))
  return dataclasses.replace(CONFIG, model=model)


def test_the_text_decides_how_much_of_a_dictionary_is_used():
  config = with_quantizer(kind='dictionary')
  few = changed('codebook_perplexity', 1.0)
  assert not health.train_alarms(config, 100, few)


def test_stages_are_judged_one_by_one():
  config = with_quantizer(kind='rvq', depth=2)
  sane = SANE | ByLevel(({'stage0/codebook_perplexity': 9},))
  # A few steps need not use many of the 4096 codes of both stages together.
  assert not health.train_alarms(config, 100, sane)
  bad = sane | ByLevel(({'stage1/codebook_perplexity': 1.0},))
  (alarm,) = health.train_alarms(config, 100, bad)
  assert alarm.message.startswith('stage1: 1.0 of 64 codes')


@pytest.fixture
def broken(tmp_path, monkeypatch):
  """Runs a config for a few steps, on text unlike its held-out text.

  Returns the step of the last alarm of each kind.
  """
  # A mesh of one device compiles faster than one of all.
  make_mesh = sharding.make_mesh
  monkeypatch.setattr(
    sharding, 'make_mesh', lambda c: make_mesh(c, jax.devices()[:1])
  )
  (tmp_path / 'train.txt').write_text('ab ' * 3000)
  (tmp_path / 'held_out.txt').write_text('xylophone, zebra; 1234. ' * 300)

  def run(edit):
    values = tiny.get_config()
    values.health.after_steps = 2
    values.max_steps, values.num_epochs = 40, 1000.0
    values.log_interval = values.checkpoint_interval = 20
    values.eval_interval, values.final_eval_batches = 40, 1
    values.optimizer.warmup_steps = 1
    values.data.sequence_length, values.data.batch_size = 32, 4
    values.data.train = f'{tmp_path}/train.txt'
    values.data.validation = f'{tmp_path}/held_out.txt'
    (level,) = values.model.levels
    level.segmentation.target_length = None
    level.segmentation.rule = 'stride'
    level.segmentation.max_length = 8
    edit(values, level)
    workdir = tmp_path / 'run'
    run = Run(config_of(values), str(workdir))
    with contextlib.suppress(FloatingPointError):
      run.train(run.start())
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    found = {
      name.removeprefix('health/'): line['step']
      for line in map(json.loads, reversed(lines))
      for name, value in line.items()
      if name.startswith('health/') and value == 1.0
    }
    # TensorBoard has a text for each alarm.
    events = EventAccumulator(str(workdir / 'tensorboard')).Reload()
    texts = {
      tag.split('/')[1] for tag in events.Tags()['tensors'] if 'health' in tag
    }
    assert texts == set(found)
    return found

  return run


@pytest.mark.nightly
def test_one_code_for_every_byte(broken, capsys):
  def edit(values, level):
    level.segmentation.threshold = 1.0
    level.segmentation.capacity_length = 1.0
    # All codes but code 0 are forbidden.
    level.quantizer.forbidden = tuple(range(1, 64))

  found = broken(edit)
  assert {'codebook_collapse', 'segments_of_one_id', 'codes_ignored'} <= (
    found.keys()
  )
  # The held-out text is of another kind.
  assert 'validation_drift' in found
  assert 'overflow' not in found
  assert 'segments_of_max_length' not in found
  out = ''.join(capsys.readouterr())
  assert out.count('ALARM codebook_collapse: ') == 1


# Every run tests the limits of these alarms, above.
@pytest.mark.nightly
def test_too_few_slots_and_too_large_steps(broken):
  def edit(values, level):
    level.segmentation.threshold = 1.0
    level.segmentation.capacity_length = 4.0
    values.optimizer.learning_rate = 30.0

  found = broken(edit)
  assert {'overflow', 'exploding_gradients'} <= found.keys()
  assert 'segments_of_one_id' not in found


@pytest.mark.nightly
def test_one_segment_a_row_and_numbers_that_are_none(broken, capsys):
  def edit(values, level):
    level.segmentation.rule = 'entropy_threshold'
    level.segmentation.threshold = 99.0
    values.health.after_steps = 0
    values.log_interval = values.checkpoint_interval = 1
    values.optimizer.learning_rate = 1e36

  assert {'segments_of_max_length', 'non_finite'} <= broken(edit).keys()
