"""Settings of a level that are refused, and the error that says why."""

import pytest

from tests.helpers.config_values import (
  LEVEL,
  MLA,
  REMOVED,
  TOP_LM,
  assert_refused,
  name_of,
  stacked,
)


@pytest.mark.parametrize(
  ('edits', 'message'),
  [
    (
      {f'{LEVEL}.expander.lookbak': 1},
      ('model.levels[0].expander.lookbak', 'unknown', 'lookback'),
    ),
    (
      {f'{LEVEL}.quantizer.decay': REMOVED},
      ('missing', 'model.levels[0].quantizer.decay'),
    ),
    (
      {f'{LEVEL}.segmentation.rule': 'spaces'},
      ('model.levels[0].segmentation.rule', "'spaces'", 'entropy_delta'),
    ),
    (
      {f'{LEVEL}.segmentation.threshold': -2e5},
      ('model.levels[0].segmentation.threshold', '-200000.0', '100000'),
    ),
    (
      {f'{LEVEL}.segmentation.calibration_step': 2.0},
      ('model.levels[0].segmentation.calibration_step', '2.0', 'at most 1'),
    ),
    (
      {f'{LEVEL}.entropy_heads.temperature': 1e-7},
      ('model.levels[0].entropy_heads.temperature', '1e-07', '>= 1e-6'),
    ),
    (
      {f'{LEVEL}.entropy_heads.gaussian_layers': 1},
      ('model.levels[0].entropy_heads.gaussian_layers', '1', 'components is 0'),
    ),
    (
      {f'{LEVEL}.entropy_heads.gaussian_log_variance_min': -50.0},
      (
        'model.levels[0].entropy_heads.gaussian_log_variance_min',
        '-50.0',
        '-40 to 40',
      ),
    ),
    (
      {
        f'{LEVEL}.quantizer.codebook': 'gradient',
        f'{LEVEL}.quantizer.protected': (1,),
      },
      ('model.levels[0].quantizer.protected', '(1,)', "codebook 'gradient'"),
    ),
    (
      {
        f'{LEVEL}.quantizer.kind': 'fsq',
        f'{LEVEL}.quantizer.start': 'kmeans',
      },
      ('model.levels[0].quantizer.start', "'kmeans'", "with kind 'fsq'"),
    ),
    (
      {
        f'{LEVEL}.quantizer.kind': 'dictionary',
        f'{LEVEL}.segmentation.rule': 'entropy_delta',
      },
      (
        'model.levels[0].segmentation.rule',
        "'entropy_delta'",
        "'stride' or 'space' with quantizer.kind 'dictionary'",
        'or True for freeze_entropy_model',
      ),
    ),
    (
      {
        f'{LEVEL}.quantizer.kind': 'dictionary',
        f'{LEVEL}.pooling.num_queries': 2,
      },
      ('model.levels[0].pooling.num_queries', '2', '1 with quantizer.kind'),
    ),
    (
      {
        f'{LEVEL}.quantizer.kind': 'dictionary',
        f'{LEVEL}.quantizer.codebook_size': 1,
      },
      ('model.levels[0].quantizer.codebook_size', '1', 'the escape'),
    ),
    (
      {
        f'{LEVEL}.quantizer.kind': 'dictionary',
        f'{LEVEL}.quantizer.forbidden': (1,),
      },
      ('model.levels[0].quantizer.forbidden', '(1,)', "kind 'dictionary'"),
    ),
    (
      stacked(
        {
          'quantizer.kind': 'dictionary',
          'segmentation.rule': 'stride',
          'segmentation.threshold': 2.0,
        }
      ),
      ('model.levels[1].quantizer.kind', "'dictionary'", 'above the first'),
    ),
    *(
      (
        {
          f'{LEVEL}.quantizer.kind': 'dictionary',
          'model.top_lm': TOP_LM | edits,
        },
        ('model.levels[0].quantizer.kind', "'dictionary'", "mode 'continuous'"),
      )
      for edits in ({'mode': 'continuous'}, {'expand': True})
    ),
    (
      {f'{LEVEL}.expander.context': 'row'},
      ('model.levels[0].expander.context', "'row'", 'segment, window, full'),
    ),
    (
      {f'{LEVEL}.expander.ends': 'both'},
      ('model.levels[0].expander.ends', "'both'", 'head, entropy'),
    ),
    (
      {f'{LEVEL}.expander.byte_dropout': 1.0},
      ('model.levels[0].expander.byte_dropout', '1.0', '0 <= value < 1'),
    ),
    (
      {f'{LEVEL}.expander.code_dim': 0},
      ('model.levels[0].expander.code_dim', '0', 'positive'),
    ),
    (
      {f'{LEVEL}.expander.distance': 'cosine'},
      ('model.levels[0].expander.distance', "'cosine'", 'dot, squared'),
    ),
    (
      {f'{LEVEL}.expander.distance': 'squared'},
      ('model.levels[0].expander.distance', "'squared'", 'code_dim is None'),
    ),
    ({f'{LEVEL}.freeze': True}, ('model.levels[0].freeze', 'top_lm')),
    (
      {
        'model.top_lm': TOP_LM,
        f'{LEVEL}.freeze': True,
        f'{LEVEL}.load_entropy_model_from': 'runs/e',
      },
      ('model.levels[0].load_entropy_model_from', "'runs/e'", 'freeze is True'),
    ),
    (
      {f'{LEVEL}.pooling.num_queries': 0},
      ('model.levels[0].pooling.num_queries', '0', 'positive'),
    ),
    (
      {f'{LEVEL}.entropy_model.window': 0},
      ('model.levels[0].entropy_model.window', '0', 'positive'),
    ),
    (
      {f'{LEVEL}.segmentation.min_length': 17},
      ('model.levels[0].segmentation.min_length', '17', 'max_length (16)'),
    ),
    (
      {f'{LEVEL}.segmentation.capacity_length': 0.5},
      ('model.levels[0].segmentation.capacity_length', '0.5', '1 to', '16'),
    ),
    (
      {f'{LEVEL}.segmentation.capacity_length': 17.0},
      ('model.levels[0].segmentation.capacity_length', '17.0', '1 to', '16'),
    ),
    (
      {f'{LEVEL}.segmentation.target_length': 2.0},
      (
        'model.levels[0].segmentation.target_length',
        '2.0',
        'capacity_length (3.0)',
      ),
    ),
    (
      {f'{LEVEL}.segmentation.target_length': 16.5},
      ('model.levels[0].segmentation.target_length', '16.5', 'max_length (16)'),
    ),
    (
      {
        f'{LEVEL}.segmentation.min_length': 5,
        f'{LEVEL}.segmentation.target_length': 4.5,
      },
      ('model.levels[0].segmentation.target_length', '4.5', 'min_length (5)'),
    ),
    (
      {f'{LEVEL}.quantizer.decay': 1.0},
      ('model.levels[0].quantizer.decay', '1.0', '0 <= value < 1'),
    ),
    (
      {f'{LEVEL}.quantizer.kind': 'pq'},
      ('model.levels[0].quantizer.kind', "'pq'", 'vq, rvq, fsq'),
    ),
    (
      {f'{LEVEL}.quantizer.depth': 5},
      ('model.levels[0].quantizer.depth', '5', '1 to 4'),
    ),
    (
      {f'{LEVEL}.quantizer.levels': [8, 1]},
      ('model.levels[0].quantizer.levels', '(8, 1)', '>= 2'),
    ),
    (
      {f'{LEVEL}.quantizer.forbidden': [1024]},
      ('model.levels[0].quantizer.forbidden', '(1024,)', '0 to 1023'),
    ),
    (
      {f'{LEVEL}.quantizer.protected': [3, 3]},
      ('model.levels[0].quantizer.protected', '(3, 3)', 'different'),
    ),
    (
      {
        f'{LEVEL}.quantizer.codebook_size': 2,
        f'{LEVEL}.quantizer.forbidden': [0, 1],
      },
      ('model.levels[0].quantizer.forbidden', '(0, 1)', 'fewer'),
    ),
    (
      {f'{LEVEL}.quantizer.kind': 'fsq', f'{LEVEL}.quantizer.cosine': True},
      ('model.levels[0].quantizer.cosine', 'True', "'fsq'"),
    ),
    (
      {
        f'{LEVEL}.quantizer.codebook': 'gradient',
        f'{LEVEL}.quantizer.start': 'kmeans',
      },
      ('model.levels[0].quantizer.start', "'kmeans'", "'gradient'"),
    ),
    (
      {f'{LEVEL}.quantizer.kind': 'rvq', f'{LEVEL}.quantizer.depth': 4},
      ('model.levels[0].quantizer.codebook_size', '1024', '1099511627776'),
    ),
    (
      {f'{LEVEL}.quantizer.kind': 'fsq', f'{LEVEL}.quantizer.levels': [99] * 5},
      ('model.levels[0].quantizer.levels', '(99, 99, 99, 99, 99)', 'at most'),
    ),
    (
      {f'{LEVEL}.quantizer.reset_usage': 1.0},
      ('model.levels[0].quantizer.reset_usage', '1.0', '0 <= value < 1'),
    ),
    (
      {f'{LEVEL}.quantizer.code_dim': 0},
      ('model.levels[0].quantizer.code_dim', '0', 'positive'),
    ),
    (
      {f'{LEVEL}.expander.lookback': -1},
      ('model.levels[0].expander.lookback', '-1', '>= 0'),
    ),
    (
      {f'{LEVEL}.encoder.num_heads': 5},
      ('model.levels[0].encoder.num_heads', '5', 'divisor of d_model (96)'),
    ),
    (
      {f'{LEVEL}.pooling.num_heads': 7},
      ('model.levels[0].pooling.num_heads', '7', 'divisor of d_model (96)'),
    ),
    (
      {f'{LEVEL}.expander.num_heads': 32},
      ('model.levels[0].expander.num_heads', '32', 'even', '96'),
    ),
    (
      {f'{LEVEL}.encoder.attention.form': 'flash'},
      ('model.levels[0].encoder.attention.form', "'flash'", 'regular, mla'),
    ),
    (
      {f'{LEVEL}.encoder.attention.form': 'mla'},
      ('model.levels[0].encoder.attention.kv_dim', 'None', 'positive', 'mla'),
    ),
    (
      {f'{LEVEL}.expander.attention.query_dim': 8},
      (
        'model.levels[0].expander.attention.query_dim',
        '8',
        "None with form 'regular'",
      ),
    ),
    (
      {
        f'{LEVEL}.entropy_model.attention.{name}': value
        for name, value in (MLA | {'retrieval_dim': 5}).items()
      },
      (
        'model.levels[0].entropy_model.attention.retrieval_dim',
        '5',
        'an even number',
      ),
    ),
    (
      stacked({'segmentation.rule': 'space'}),
      ('model.levels[1].segmentation.rule', "'space'", 'above the first level'),
    ),
    (
      stacked({'expander.ends': 'entropy'}),
      ('model.levels[1].expander.ends', "'entropy'", "'head' above"),
    ),
    (
      stacked({'entropy_heads.tie_to_embedding': False}),
      ('model.levels[1].entropy_heads.tie_to_embedding', 'False', 'True'),
    ),
    (
      stacked({'expander.code_dim': 33}),
      ('model.levels[1].expander.code_dim', '33', 'None or 32'),
    ),
    (
      stacked(
        {
          'segmentation.capacity_length': 8.0,
          'segmentation.target_length': None,
        }
      ),
      ('model.levels[1].segmentation.capacity_length', '8.0', 'rows of 86 ids'),
    ),
    (
      {
        f'{LEVEL}.segmentation.capacity_length': 16.0,
        f'{LEVEL}.segmentation.target_length': None,
      },
      (
        'model.levels[0].segmentation.capacity_length',
        '16.0',
        'rows of 256 ids',
      ),
    ),
  ],
  ids=name_of,
)
def test_an_error_names_the_setting_its_value_and_what_is_allowed(
  edits, message
):
  assert_refused(edits, message)
