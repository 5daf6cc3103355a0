"""Who may import whom, read from the source alone.

Layers, lowest first: `types`, `config`, `byte_vocab`; `ops`; `modules`;
`losses`, `metrics`, `training.step`; then loops, evaluation and commands.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'abstractinator'
MAX_LINES = 300

BASE = ('types', 'config', 'byte_vocab')
OWN = ('types', 'config')
APART = ('flax.linen', 'ml_collections')
STEP = (
  *BASE,
  'ops',
  'modules',
  'losses',
  'metrics',
  'top_lm_losses',
  'top_lm_metrics',
  'pyramid_losses',
  'pyramid_metrics',
)

# First match wins: a part of the package, the parts of it that it may import,
# and the libraries that it may not.
RULES = (
  ('types', (), ('flax.linen', 'optax', 'numpy')),
  ('huge_pages', (), ('jax', 'flax', 'numpy')),
  ('config', ('config',), ('jax', 'flax', 'numpy', 'ml_collections')),
  ('byte_vocab', ('types',), ('flax', 'optax')),
  (
    'ops',
    ('types', 'ops'),
    ('flax.linen', 'optax', 'ml_collections', 'grain', 'orbax'),
  ),
  (
    'modules',
    ('types', 'config', 'ops', 'modules'),
    ('optax', 'absl', 'ml_collections', 'grain', 'orbax'),
  ),
  ('losses', STEP, ('optax', 'absl', 'flax.linen')),
  ('metrics', STEP, ('optax', 'absl', 'flax.linen')),
  ('top_lm_losses', STEP, ('optax', 'absl', 'flax.linen')),
  ('top_lm_metrics', STEP, ('optax', 'absl', 'flax.linen')),
  ('pyramid_losses', STEP, ('optax', 'absl', 'flax.linen')),
  ('pyramid_metrics', STEP, ('optax', 'absl', 'flax.linen')),
  ('data', (*BASE, 'data'), ('flax.linen', 'optax', 'ml_collections')),
  ('training.state', (*STEP, 'training.state'), ('absl', 'grain', 'orbax')),
  ('training.objective', STEP, ('absl', 'grain', 'orbax', 'optax')),
  ('training.accumulation', (*OWN, 'ops'), APART),
  ('training.curriculum', (*OWN, 'training.parts'), APART),
  (
    'training.step',
    (
      *STEP,
      'training.accumulation',
      'training.state',
      'training.objective',
      'training.parts',
      'training.curriculum',
    ),
    ('absl', 'grain', 'orbax', 'time'),
  ),
  (
    'training.run_rows',
    (
      *OWN,
      'codes_corpus',
      'data',
      'training.objective',
      'training.trained',
    ),
    APART,
  ),
  (
    'training.loop',
    (*STEP, 'data', 'training', 'evaluation'),
    ('ml_collections',),
  ),
  ('training.program', (*STEP, 'training'), APART),
  ('training.model', (*BASE, 'ops', 'modules'), ('optax', 'ml_collections')),
  (
    'training.checkpoint',
    (*OWN, 'training.checksum', 'training.checkpoint_files'),
    APART,
  ),
  ('training.checkpoint_files', (*OWN, 'training.checksum'), APART),
  (
    'training.base',
    (
      *OWN,
      'training.parts',
      'training.checkpoint',
      'training.state',
    ),
    APART,
  ),
  (
    'training.trained',
    (
      *BASE,
      'training.checkpoint',
      'training.model',
      'training.objective',
      'training.state',
    ),
    APART,
  ),
  (
    'training.alarm_log',
    (*OWN, 'training.health', 'training.metric_writer'),
    APART,
  ),
  ('training.window', (*OWN, 'metrics'), APART),
  (
    'training.model_flops',
    (
      *OWN,
      'training.flops',
      'training.objective',
      'training.program',
      'training.state',
    ),
    APART,
  ),
  (
    'training.device_metrics',
    (*OWN, 'training.chips', 'training.model_flops'),
    APART,
  ),
  ('training.optimizer', (*OWN, 'training.muon'), APART),
  # Muon, sharding, progress and so on do not know each other.
  ('training', OWN, APART),
  (
    'evaluation.harness',
    (*BASE, 'api', 'evaluation'),
    ('ml_collections', 'lm_eval'),
  ),
  (
    'evaluation',
    (*STEP, 'alignment', 'data', 'training', 'evaluation'),
    ('ml_collections',),
  ),
  (
    'compression.hierarchy_level',
    (*BASE, 'compression.byte_model', 'ops', 'modules'),
    ('optax', 'ml_collections', 'grain', 'orbax'),
  ),
  (
    'compression.code_top_lm',
    (*BASE, 'compression', 'ops', 'modules'),
    ('optax', 'ml_collections', 'grain', 'orbax'),
  ),
  (
    'compression.byte_model',
    (*BASE, 'ops', 'modules'),
    ('optax', 'ml_collections', 'grain', 'orbax'),
  ),
  ('planning', (*OWN, 'planning', 'training'), APART),
  ('compression.container', (), ('jax', 'flax', 'numpy')),
  (
    'compression.hierarchy_model',
    (*BASE, 'compression', 'training'),
    ('optax', 'ml_collections', 'grain', 'orbax'),
  ),
  (
    'compression.code_unigram',
    ('compression', 'evaluation.unigram', 'ops.digits'),
    ('jax', 'flax', 'optax', 'ml_collections'),
  ),
  ('compression.segment_coder', (), ('jax', 'flax', 'ml_collections')),
  ('compression', ('compression',), ('flax', 'optax', 'ml_collections')),
  ('alignment', (), ('jax', 'flax')),
  ('codes', BASE, ('jax', 'flax')),
  ('codes_files', ('codes',), ('jax', 'flax')),
  ('codes_corpus', ('codes', 'codes_files', 'data'), ('jax', 'flax')),
  ('inspection', (*BASE, 'alignment'), ('jax', 'flax')),
  ('view', ('byte_vocab', 'config', 'inspection', 'view'), ('jax', 'flax')),
  ('reconstruction', (), ('jax', 'flax')),
  ('generation.options', (), ('jax', 'flax', 'numpy')),
  ('generation.text', (), ('jax', 'flax', 'numpy')),
  ('generation', (*BASE, 'ops', 'modules', 'generation'), ('absl', 'optax')),
  ('level_programs', (*STEP, 'codes', 'evaluation'), ('absl', 'optax')),
  ('level_rows', (*STEP, 'codes', 'level_programs', 'training'), ('absl',)),
  (
    'api',
    (
      *STEP,
      'codes',
      'generation',
      'inspection',
      'level_programs',
      'level_rows',
      'reconstruction',
      'training',
    ),
    ('absl',),
  ),
  ('benchmarks', None, ('ml_collections',)),
  ('commands', None, ('ml_collections',)),
  ('cli', ('commands',), ('jax', 'flax', 'ml_collections')),
  ('__main__', ('cli',), ()),
  ('', ('api', 'codes_files'), ()),
)


def is_under(name, parts):
  return any(name == part or name.startswith(f'{part}.') for part in parts)


def rule_for(name):
  for part, allowed, banned in RULES:
    if is_under(name, (part,)) or name == part:
      return part, allowed, banned
  raise AssertionError(f'{PACKAGE}.{name}: no rule in {__file__} covers it')


def imports(source):
  """Dotted names a file imports, wherever in it."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'relative import of {node.module}'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def violations(name, source):
  """What a file of the package imports against its rule."""
  _, allowed, banned = rule_for(name)
  for target in imports(source):
    if is_under(target, (PACKAGE,)):
      inner = target.removeprefix(PACKAGE).removeprefix('.')
      if allowed is not None and not is_under(inner, allowed):
        yield f'{target} (allowed of the package: {", ".join(allowed)})'
    elif is_under(target, banned):
      yield f'{target} (not allowed: {", ".join(banned)})'


def module_name(path):
  parts = path.relative_to(ROOT / PACKAGE).with_suffix('').parts
  return '.'.join(parts).removesuffix('__init__').removesuffix('.')


FILES = sorted((ROOT / PACKAGE).rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_layers(path):
  found = list(violations(module_name(path), path.read_text()))
  assert not found, f'{path.relative_to(ROOT)} imports {"; ".join(found)}'


def test_no_file_of_the_package_is_too_long():
  long = {
    str(path.relative_to(ROOT)): count
    for path in FILES
    if (count := len(path.read_text().splitlines())) > MAX_LINES
  }
  assert not long, f'at most {MAX_LINES} lines a file: {long}; split by idea'


@pytest.mark.parametrize(
  'path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda p: p.name
)
def test_configs_load_without_jax_or_the_package(path):
  for target in imports(path.read_text()):
    assert not is_under(target, (PACKAGE, 'jax', 'flax', 'optax')), (
      f'configs/{path.name} imports {target}: configs load in milliseconds'
    )


@pytest.mark.parametrize(
  ('name', 'source'),
  [
    ('types', 'from abstractinator.config import X'),
    ('ops.rope', 'import flax.linen as nn'),
    ('ops.rope', 'from flax import linen'),
    ('ops.attention.xla', 'from abstractinator import config'),
    ('ops.rope', 'from abstractinator.modules import layers'),
    ('modules.layers', 'def f():\n  import optax'),
    ('modules.layers', 'from abstractinator import losses'),
    ('losses', 'from abstractinator.training import step'),
    ('training.step', 'from absl import logging'),
    ('training.sharding', 'from abstractinator.training import loop'),
    ('data.packing', 'from abstractinator.modules import layers'),
    ('', 'from abstractinator import cli'),
  ],
)
def test_a_forbidden_import_is_found(name, source):
  assert list(violations(name, source))
