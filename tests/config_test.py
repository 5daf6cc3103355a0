import ast
import copy
import dataclasses
import json
import pathlib
import runpy
import typing

import pytest

from abstractinator import config as config_lib
from abstractinator.config import RunConfig

ROOT = pathlib.Path(__file__).parents[1]


def plain(config):
  """As train.py hands it over."""
  return json.loads(config.to_json_best_effort())


_DEFAULT = runpy.run_path(str(ROOT / 'configs' / 'default.py'))
DEFAULT, UPPER, TOP_LM = (
  plain(_DEFAULT[name]())
  for name in ('get_config', 'get_upper_level', 'get_top_lm')
)


def values(edits=()):
  """The default run as plain values, with settings at dotted paths replaced."""
  result = copy.deepcopy(DEFAULT)
  for path, value in dict(edits).items():
    *groups, last = path.split('.')
    node = result
    for group in groups:
      node = node[int(group) if group.isdigit() else group]
    if value is REMOVED:
      del node[last]
    else:
      node[last] = copy.deepcopy(value)
  return result


REMOVED = object()
LEVEL = 'model.levels.0'
MLA = {'form': 'mla', 'kv_dim': 12, 'query_dim': 8, 'retrieval_dim': 4}


@pytest.mark.parametrize(
  'path',
  sorted((ROOT / 'configs').glob('*.py')),
  ids=lambda p: p.name,
)
def test_every_config_builds(path, tmp_path):
  get_config = runpy.run_path(str(path))['get_config']
  args = []
  if path.name == 'resume.py':
    edited = values(
      {
        'seed': 3,
        f'{LEVEL}.expander.lookback': 2,
        'model.levels': [DEFAULT['model']['levels'][0], UPPER],
        'model.top_lm': TOP_LM | {'d_model': 12},
      }
    )
    (tmp_path / 'config.json').write_text(json.dumps(edited))
    args.append(str(tmp_path))
  config = RunConfig.from_dict(plain(get_config(*args)))
  assert config.model.levels
  if args:
    assert config == RunConfig.from_dict(edited)


def test_a_config_survives_its_own_dictionary():
  config = RunConfig.from_dict(values())
  assert RunConfig.from_dict(config.to_dict()) == config
  assert config.model.levels[0].segmentation.target_length == 4.5
  assert config.data.validation == ''


def test_latent_attention_needs_no_even_heads():
  """Its rotary pairs are of the retrieval width; a stack may see all ids."""
  edits = {f'{LEVEL}.encoder.attention.{k}': v for k, v in MLA.items()}
  edits |= {f'{LEVEL}.encoder.num_heads': 32, f'{LEVEL}.encoder.window': None}
  encoder = RunConfig.from_dict(values(edits)).model.levels[0].encoder
  assert encoder.attention.to_dict() == MLA
  assert encoder.window is None


def test_whole_numbers_serve_as_fractions():
  config = RunConfig.from_dict(values({'optimizer.clip_norm': 2}))
  assert type(config.optimizer.clip_norm) is float


def stacked(**changes):
  """Edits that make a pyramid of the default level and another one."""
  upper = copy.deepcopy(UPPER)
  for path, value in changes.items():
    *groups, last = path.split('__')
    node = upper
    for group in groups:
      node = node[group]
    node[last] = value
  return {'model.levels': [DEFAULT['model']['levels'][0], upper]}


def test_ids_of_a_level_are_the_slots_below():
  edits = stacked() | {f'{LEVEL}.pooling.num_queries': 2}
  model = RunConfig.from_dict(values(edits)).model
  # 256 bytes in segments of 3, two codes each.
  assert model.sequence_lengths(256) == (256, 2 * 86)
  # 86 slots for 256 bytes at 16; 86 slots for 172 codes at 8.
  assert model.levels[0].max_documents(256) == 86 - 16
  assert model.max_documents(256) == 86 - 22


def test_slots_hold_a_row_of_the_mean_length():
  segmentation = RunConfig.from_dict(values()).model.levels[0].segmentation
  assert segmentation.num_slots(9) == 3
  assert segmentation.num_slots(10) == 4


@pytest.mark.parametrize(
  ('edits', 'message'),
  [
    ({'sede': 1}, ('sede', 'unknown', 'seed')),
    ({'data.batchsize': 4}, ('data.batchsize', 'unknown', 'batch_size')),
    (
      {f'{LEVEL}.expander.lookbak': 1},
      ('model.levels[0].expander.lookbak', 'unknown', 'lookback'),
    ),
    ({'seed': REMOVED}, ('missing', 'seed')),
    ({'data.train': REMOVED}, ('missing', 'data.train')),
    (
      {f'{LEVEL}.quantizer.decay': REMOVED},
      ('missing', 'model.levels[0].quantizer.decay'),
    ),
    ({'seed': 'zero'}, ('seed', "'zero'", 'int')),
    ({'seed': True}, ('seed', 'True', 'int')),
    ({'data.sequence_length': 1.5}, ('data.sequence_length', '1.5', 'int')),
    ({'loss.end': float('nan')}, ('loss.end', 'nan', 'finite')),
    ({'optimizer.beta1': '0.9'}, ('optimizer.beta1', "'0.9'", 'float')),
    ({'data': 3}, ('data', '3', 'group of settings')),
    ({'model.levels': 'one'}, ('model.levels', "'one'", 'list')),
    ({'model.levels': []}, ('model.levels', '0', '1 level')),
    (
      {'model.dtype': 'float16'},
      ('model.dtype', "'float16'", 'float32, bfloat16'),
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
        f'{LEVEL}.entropy_heads.gaussian_components': 1,
        f'{LEVEL}.entropy_heads.source': 'gaussian',
      },
      ('loss.gaussian', '0.0', "levels[0].entropy_heads.source is 'gaussian'"),
    ),
    (
      {f'{LEVEL}.quantizer.codebook': 'gradient', 'loss.codebook': 0.0},
      ('loss.codebook', '0.0', "levels[0].quantizer.codebook is 'gradient'"),
    ),
    (
      {
        f'{LEVEL}.quantizer.codebook': 'gradient',
        f'{LEVEL}.quantizer.protected': (1,),
      },
      ('model.levels[0].quantizer.protected', '(1,)', "is 'gradient'"),
    ),
    (
      {
        f'{LEVEL}.quantizer.kind': 'fsq',
        f'{LEVEL}.quantizer.start': 'kmeans',
      },
      ('model.levels[0].quantizer.start', "'kmeans'", "kind is 'fsq'"),
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
      {
        'model.top_lm': TOP_LM,
        f'{LEVEL}.freeze': True,
        'loss.curriculum_steps': 5,
      },
      ('loss.curriculum_steps', '5', 'freeze is True'),
    ),
    (
      {'model.top_lm': TOP_LM, 'loss.curriculum_steps': 700},
      ('loss.curriculum_steps', '700', 'max_steps (700)'),
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
    (
      {f'{LEVEL}.pooling.num_queries': 0},
      ('model.levels[0].pooling.num_queries', '0', 'positive'),
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
      stacked(segmentation__rule='space'),
      ('model.levels[1].segmentation.rule', "'space'", 'not about bytes'),
    ),
    (
      stacked(expander__ends='entropy'),
      ('model.levels[1].expander.ends', "'entropy'", 'head, above'),
    ),
    (
      stacked(entropy_heads__tie_to_embedding=False),
      ('model.levels[1].entropy_heads.tie_to_embedding', 'False', 'True'),
    ),
    (
      stacked(expander__code_dim=33),
      ('model.levels[1].expander.code_dim', '33', 'None or 32'),
    ),
    (
      stacked(
        segmentation__capacity_length=8.0, segmentation__target_length=None
      ),
      ('model.levels[1].segmentation.capacity_length', '8.0', 'rows of 86 ids'),
    ),
    (
      {'model.top_lm': TOP_LM | {'mode': 'both'}},
      ('model.top_lm.mode', "'both'", 'discrete, continuous'),
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
    ({'seed': -1}, ('seed', '-1', '>= 0')),
    ({'max_steps': 0}, ('max_steps', '0', 'positive')),
    ({'num_epochs': 0.0}, ('num_epochs', '0.0', 'positive')),
    (
      {'checkpoint_interval': 30},
      ('checkpoint_interval', '30', 'multiple of log_interval (20)'),
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
  ids=lambda v: ' '.join(v) if isinstance(v, dict) else '',
)
def test_an_error_names_the_setting_its_value_and_what_is_allowed(
  edits, message
):
  with pytest.raises(ValueError) as info:
    RunConfig.from_dict(values(edits))
  assert '\n' not in str(info.value)
  for part in message:
    assert part in str(info.value)
  if message[0] != 'missing':
    assert str(info.value).startswith(message[0])


def sections():
  for value in vars(config_lib).values():
    if dataclasses.is_dataclass(value) and isinstance(value, type):
      yield value


def attributes_read():
  """Names that the package reads as attributes, checks of config.py apart."""
  names = set()
  for path in (ROOT / 'abstractinator').rglob('*.py'):
    for node in without_checks(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        names.add(node.attr)
  return names


def without_checks(node):
  if not (isinstance(node, ast.FunctionDef) and node.name == '__post_init__'):
    yield node
    for child in ast.iter_child_nodes(node):
      yield from without_checks(child)


def test_every_setting_is_read_somewhere():
  # `losses.objective` goes over the fields of LossConfig, and
  # `sharding.make_mesh` over those of MeshConfig.
  by_name = {config_lib.LossConfig, config_lib.MeshConfig}
  read = attributes_read()
  unread = {
    f'{section.__name__}.{field.name}'
    for section in sections()
    if section not in by_name
    for field in dataclasses.fields(section)
    if field.name not in read
  }
  assert not unread


def test_there_are_no_defaults():
  count = 0
  for section in sections():
    for field in dataclasses.fields(section):
      count += 1
      assert field.default is dataclasses.MISSING, field.name
      assert field.default_factory is dataclasses.MISSING, field.name
    assert typing.get_type_hints(section)
  assert count > 60
