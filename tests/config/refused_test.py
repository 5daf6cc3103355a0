"""Settings of a run that are refused, and the error that says why.

The settings of levels are in `level_refused_test`.
"""

import pytest

from tests.helpers.config_values import (
  LEVEL,
  REMOVED,
  TOP_LM,
  assert_refused,
  name_of,
)


@pytest.mark.parametrize(
  ('edits', 'message'),
  [
    ({'sede': 1}, ('sede', 'unknown', 'seed')),
    ({'data.batchsize': 4}, ('data.batchsize', 'unknown', 'batch_size')),
    ({'seed': REMOVED}, ('missing', 'seed')),
    ({'data.train': REMOVED}, ('missing', 'data.train')),
    ({'seed': 'zero'}, ('seed', "'zero'", 'int')),
    ({'seed': True}, ('seed', 'True', 'int')),
    ({'data.sequence_length': 1.5}, ('data.sequence_length', '1.5', 'int')),
    ({'loss.end': float('nan')}, ('loss.end', 'nan', 'finite')),
    ({'optimizer.beta1': '0.9'}, ('optimizer.beta1', "'0.9'", 'float')),
    ({'data': 3}, ('data', '3', 'group of settings')),
    ({'model.levels': 'one'}, ('model.levels', "'one'", 'list')),
    ({'model.levels': []}, ('model.levels', '()', '1 level')),
    (
      {'model.dtype': 'float16'},
      ('model.dtype', "'float16'", 'float32, bfloat16'),
    ),
    (
      {
        f'{LEVEL}.entropy_heads.gaussian_components': 1,
        f'{LEVEL}.entropy_heads.source': 'gaussian',
      },
      ('loss.gaussian', '0.0', "levels[0].entropy_heads.source is 'gaussian'"),
    ),
    (
      {f'{LEVEL}.quantizer.codebook': 'gradient', 'loss.codebook': 0.0},
      ('loss.codebook', '0.0', "levels[0].quantizer.codebook is 'gradient'"),
    ),
    ({'data.batch_size': 0}, ('data.batch_size', '0', 'positive')),
    ({'microbatches': 3}, ('microbatches', '3', 'divisor of data.batch_size')),
    (
      {'model.implementation.remat': 'all'},
      ('model.implementation.remat', "'all'", 'none, dots, blocks'),
    ),
    (
      {'optimizer.schedule': 'linear'},
      ('optimizer.schedule', "'linear'", 'cosine, warmup_stable_decay'),
    ),
    ({'optimizer.kind': 'sgd'}, ('optimizer.kind', "'sgd'", 'adamw, muon')),
    ({'optimizer.ema_decay': 1.0}, ('optimizer.ema_decay', '1.0', '< 1')),
    (
      {'optimizer.relative_rates.top_lm': 0.0},
      ('optimizer.relative_rates.top_lm', '0.0', 'positive'),
    ),
    (
      {'optimizer.decay_fraction': 2.0},
      ('optimizer.decay_fraction', '2.0', '0 to 1'),
    ),
    (
      {
        'model.top_lm': TOP_LM,
        f'{LEVEL}.freeze': True,
        'loss.curriculum_steps': 5,
      },
      ('loss.curriculum_steps', '5', 'freeze is True'),
    ),
    (
      {'loss.curriculum_stops': True},
      ('loss.curriculum_stops', 'True', 'False while curriculum_steps is 0'),
    ),
    (
      {'load_base_from': 'runs/a'},
      ('load_base_from', "'runs/a'", 'None while model.levels[0].freeze'),
    ),
    (
      {'objective': 'entropy_model', f'{LEVEL}.freeze_entropy_model': True},
      ('objective', "'entropy_model'", 'frozen entropy model'),
    ),
    ({'data.read_threads': -1}, ('data.read_threads', '-1', '>= 0')),
    (
      {'data.validation_fraction': 1.0},
      ('data.validation_fraction', '1.0', '0 <= value < 1'),
    ),
    (
      {'data.validation_fraction': 0.0},
      ('data.validation_fraction', '0.0', 'above 0', 'validation is empty'),
    ),
    (
      {'model.top_lm': TOP_LM | {'mode': 'both'}},
      ('model.top_lm.mode', "'both'", 'discrete, continuous'),
    ),
    (
      {'model.top_lm': TOP_LM | {'d_model': 0}},
      ('model.top_lm.d_model', '0', 'positive'),
    ),
    (
      {'model.top_lm': TOP_LM | {'d_model': 97}},
      ('model.top_lm.stack.num_heads', '3', 'a divisor of d_model (97)'),
    ),
    (
      {'model.top_lm': TOP_LM | {'d_model': 9}},
      ('model.top_lm.stack.num_heads', '3', 'd_model / num_heads even', '9)'),
    ),
    (
      {'model.top_lm': TOP_LM | {'base': 'entropy_model'}},
      ('model.top_lm.base', "'entropy_model'", "expander.ends 'entropy'"),
    ),
    (
      {'model.top_lm': TOP_LM | {'width': 6}},
      (
        'model.top_lm.width',
        'unknown setting',
        'mode, d_model, stack, inputs, base, expand',
      ),
    ),
    (
      {'objective': 'top_lm', 'model.top_lm': TOP_LM},
      ('objective', "'top_lm'", 'without frozen model.levels', "base 'none'"),
    ),
    (
      {'loss.gaussian': 1.0},
      ('loss.gaussian', '1.0', 'gaussian_components of all'),
    ),
    ({'loss.top_lm_end': -1.0}, ('loss.top_lm_end', '-1.0', '>= 0')),
    ({'loss.commitment': -0.1}, ('loss.commitment', '-0.1', '>= 0')),
    (
      {'optimizer.final_fraction': 1.5},
      ('optimizer.final_fraction', '1.5', '0 to 1'),
    ),
    ({'optimizer.warmup_steps': -1}, ('optimizer.warmup_steps', '-1', '>= 0')),
    (
      {'optimizer.weight_decay': -1.0},
      ('optimizer.weight_decay', '-1.0', '>= 0'),
    ),
    ({'optimizer.beta2': 1.0}, ('optimizer.beta2', '1.0', '0 <= value < 1')),
    ({'mesh.fsdp': 0}, ('mesh.fsdp', '0', 'positive number or -1')),
    ({'mesh.tensor': -1}, ('mesh.tensor', '-1 on one axis')),
    ({'max_to_keep': 0}, ('max_to_keep', '0', 'positive')),
    ({'seed': -1}, ('seed', '-1', '0 to 2^32 - 1')),
    ({'max_steps': 0}, ('max_steps', '0', 'positive')),
    ({'num_epochs': 0.0}, ('num_epochs', '0.0', 'positive')),
    (
      {'checkpoint_interval': 30},
      ('checkpoint_interval', '30', 'multiple of log_interval (20)'),
    ),
  ],
  ids=name_of,
)
def test_an_error_names_the_setting_its_value_and_what_is_allowed(
  edits, message
):
  assert_refused(edits, message)
