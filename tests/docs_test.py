"""README and the pages of docs/: what they name exists.

Links resolve, every page is in the navigation, and settings, flags, configs,
commands and metrics that a page names are those of the code.
"""

import argparse
import ast
import functools
import importlib.util
import json
import pathlib
import re
import shlex

import pytest

from abstractinator.cli import config_file, main
from abstractinator.evaluation import units

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
# Files in which figures of a run get their names.
NAMING = (
  *('objective/losses.py', 'objective/metrics.py', 'objective/objectives.py'),
  *('evaluation/evaluate.py', 'evaluation/generated.py'),
  *('evaluation/held_out.py', 'evaluation/level_statistics.py'),
  *('evaluation/likelihood.py', 'evaluation/coded_rows.py'),
  'evaluation/robustness.py',
  *('training/flops.py', 'training/health.py', 'training/report.py'),
  *('training/loop.py', 'training/step.py', 'training/step_metrics.py'),
)
# A word in backticks that ends so is a metric, unless it is a setting.
METRIC = re.compile(
  r'(_bits_per_\w+|_accuracy(_\w+)?|_fraction|_perplexity|_efficiency'
  r'|_over_flat|_ratio|_p\d\d)$'
)
PLACE = re.compile(r'^(train|eval|perf|noise|generated|level\d|stage\d)/(?=.)')


def ids(paths):
  return [str(path.relative_to(ROOT)) for path in paths]


def each_page(function):
  return pytest.mark.parametrize('page', PAGES, ids=ids(PAGES))(function)


def prose(page):
  """Returns the text of a page without its blocks of code."""
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  return re.sub(r'^    .*$', '', text, flags=re.M)


def commands(page):
  """Returns the words of each command in the blocks of a page."""
  text = page.read_text()
  blocks = re.findall(r'(?:^(?:    .*| *)\n)+', text, flags=re.M)
  blocks += re.findall(r'^```(?:bash|sh)\n(.*?)^```', text, flags=re.M | re.S)
  lines = ''.join(blocks).replace('\\\n', ' ').splitlines()
  return [
    shlex.split(part, comments=True)
    for line in lines
    for part in line.split(' && ')
    if re.search(r'\b(abstractinator|train\.py)\b', part)
  ]


def slugs(page):
  """Returns the anchors of the headings of a page."""
  names = re.findall(r'^#+ (.*)$', page.read_text(), flags=re.M)
  return {
    re.sub(r'[^\w\- ]', '', name.lower()).strip().replace(' ', '-')
    for name in names
  }


@functools.cache
def all_settings():
  """Returns every setting of one level, two levels and a top LM, as paths."""
  (path,) = (ROOT / 'configs').glob('tiny_2level.py')
  config = config_file.read(str(path), [])
  return frozenset(config_file.paths(config))


@functools.cache
def named():
  """Returns the names in the code: constants, and patterns with fillings."""
  constants, patterns = set(), []
  for name in NAMING:
    tree = ast.parse((ROOT / 'abstractinator' / name).read_text())
    # Text that is a part of a longer one is no name of its own.
    parts = set()
    for node in ast.walk(tree):
      if isinstance(node, ast.JoinedStr):
        parts |= {id(x) for x in ast.walk(node)}
        pieces = [
          re.escape(x.value) if isinstance(x, ast.Constant) else '(.*)'
          for x in node.values
        ]
        if re.search(r'[a-z]{2}', ''.join(pieces)):
          patterns.append(re.compile(''.join(pieces)))
      elif isinstance(node, ast.Constant) and id(node) not in parts:
        constants.add(str(node.value))
      elif isinstance(node, ast.keyword | ast.FunctionDef):
        constants.add(str(getattr(node, 'arg', None) or ''))
  return frozenset(constants | {''}), tuple(patterns)


@functools.cache
def is_name(word):
  """Returns whether the code can give a figure this name."""
  constants, patterns = named()
  if word in constants:
    return True
  return any(
    all(len(part) < len(word) and is_name(part) for part in match.groups())
    for match in (pattern.fullmatch(word) for pattern in patterns)
    if match
  )


def is_metric(word):
  while PLACE.match(word) and not is_name(word):
    word = PLACE.sub('', word)
  return is_name(word)


@each_page
def test_relative_links_resolve(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
    if re.match(r'[a-z]+:', target):
      continue
    path, _, anchor = target.partition('#')
    file = (page.parent / path) if path else page
    assert file.exists(), f'{target}: no such file'
    if anchor:
      assert anchor in slugs(file), f'{target}: no such heading'


def test_every_page_is_in_the_navigation_once():
  text = (ROOT / 'mkdocs.yml').read_text()
  listed = re.findall(r'^ +- .*: (\S+\.md)$', text, flags=re.M)
  pages = [str(p.relative_to(ROOT / 'docs')) for p in PAGES[1:]]
  assert sorted(listed) == sorted(pages)


@each_page
def test_settings_on_command_lines_exist(page):
  for path in re.findall(r'--config\.([\w.\[\]]+)', page.read_text()):
    known = path.replace('PATH', 'seed').rstrip('.')
    assert known in all_settings(), f'--config.{path}'


@each_page
def test_commands_configs_and_flags_exist(page):
  for words in commands(page):
    text = ' '.join(words)
    for module in re.findall(r'abstractinator\.[\w.]+\b', text):
      assert importlib.util.find_spec(module) is not None, text
    for config in re.findall(r'--config=(?!/)(\S+)', text):
      stem = pathlib.Path(config.partition(':')[0]).stem
      assert stem in {*config_file.names(), 'mine', 'CONFIG', 'NAME'}, text
    at = [i for i, word in enumerate(words) if word == 'abstractinator']
    name = 'train' if not at else words[at[0] + 1] if words[at[0] + 1 :] else ''
    if 'train.py' not in text and not at:
      continue
    assert name in {*main._COMMANDS, 'COMMAND', '--help'}, text
    if name not in main._COMMANDS:
      continue
    parser = argparse.ArgumentParser()
    main._module(name).add_arguments(parser)
    for word in words[(at[0] + 2 if at else words.index('train.py') + 1) :]:
      flag = word.partition('=')[0]
      if flag.startswith('--') and not flag.startswith('--config.'):
        assert flag in main._flags(parser), text


def test_the_guide_to_configs_lists_each_of_them():
  text = (ROOT / 'docs/guides/config.md').read_text()
  rows = re.findall(r'^\| (`.*?) \| ', text, flags=re.M)
  listed = {name for row in rows for name in re.findall(r'`(\w+)`', row)}
  assert set(config_file.names()) <= listed


@each_page
def test_metrics_that_are_named_exist(page):
  last = {re.split(r'[.\]]', path)[-1] for path in all_settings()}
  for word in re.findall(r'`([\w/]+)`', prose(page)):
    if METRIC.search(word) or PLACE.match(word):
      assert is_metric(word) or word in last, word


def metrics_of_pages():
  text = ''.join(page.read_text() for page in PAGES)
  tables = map(filled, re.findall(r'<!-- (metrics \w+) -->', text))
  return re.findall(r'^\| `(\w+)` \| .* \| .+ \|$', ''.join(tables), flags=re.M)


def test_every_metric_with_a_meaning_exists_and_is_in_a_page():
  known = [name for group in units.MEANINGS.values() for name in group]
  assert len(known) > 60
  assert len(set(known)) == len(known)
  places = ('', 'train/', 'perf/')
  for word in known:
    assert any(is_name(place + word) for place in places), word
  assert sorted(metrics_of_pages()) == sorted(known)
  for group in units.MEANINGS.values():
    for word in re.findall(
      r'`(\w+)`', ''.join(x.about for x in group.values())
    ):
      last = {re.split(r'[.\]]', path)[-1] for path in all_settings()}
      assert is_name(word) or word in last, word


# Each traces a step, which takes seconds.
@pytest.mark.nightly
@pytest.mark.parametrize(
  ('name', 'settings'),
  [
    ('default', []),
    ('stage2', []),
    ('stage2', ['model.top_lm.mode=continuous', 'model.top_lm.expand=False']),
    ('tiny', ['model.levels[0].quantizer.kind=rvq']),
    (
      'entropy_pretrain',
      [
        'model.levels[0].entropy_heads.gaussian_components=1',
        'loss.gaussian=1.0',
      ],
    ),
  ],
)
def test_the_metrics_of_a_step_have_a_meaning(name, settings):
  import jax

  from abstractinator.training import program

  config = config_file.load(name, settings)
  step = program.make_program(config, 'cpu', total_steps=1000).step
  state, batch = program.state_shapes(config), program.batch_shapes(config)
  found = set(jax.eval_shape(step, state, batch)[1].flattened())
  # A histogram, of which the page has statistics.
  found = {PLACE.sub('', x) for x in found if not x.endswith('code_counts')}
  assert len(found) >= 5
  assert found - set(metrics_of_pages()) == set()


@pytest.mark.parametrize(
  'word',
  [
    'entropie_model_bits_per_byte',
    'total_bits_per_code',
    'perf/bytes_a_second',
  ],
)
def test_a_wrong_metric_is_found(word):
  assert not is_metric(word)


def test_configs_in_pages_are_configs(tmp_path):
  texts = [
    block
    for page in PAGES
    for block in re.findall(
      r'^```python\n(.*?)^```', page.read_text(), flags=re.M | re.S
    )
    if 'def get_config' in block
  ]
  assert len(texts) >= 2
  for text in texts:
    path = tmp_path / 'mine.py'
    path.write_text(text)
    assert config_file.load(str(path)).max_steps


def filled(mark):
  """Returns what the hook of the documentation puts in place of a mark."""
  spec = importlib.util.spec_from_file_location('pages', ROOT / 'docs/pages.py')
  pages = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(pages)
  return pages.on_page_markdown(f'<!-- {mark} -->')


def test_the_page_of_settings_has_each_setting_with_a_meaning():
  text = filled('settings')
  rows = re.findall(r'^\| `(\w+)` \| (.*?) \| (.*) \|$', text, flags=re.M)
  found = {name for name, _, _ in rows}
  assert found >= {re.split(r'[.\]]', path)[-1] for path in all_settings()}
  # One comment describes these settings together.
  together = {
    *('entropy_model', 'compressor', 'expander', 'top_lm'),
    *('data', 'fsdp', 'tensor'),
  }
  assert {name for name, _, about in rows if not about} <= together
  assert '| `rate_warmup_steps` | `100` | Steps in which' in text


def test_the_page_of_commands_has_each_command():
  text = filled('commands')
  assert re.findall(r'^## (\S+)$', text, flags=re.M) == list(main._COMMANDS)
  assert '| `--top_p` |' in text


def test_the_notebook_has_no_outputs():
  notebook = json.loads((ROOT / 'docs/first_steps.ipynb').read_text())
  cells = [x for x in notebook['cells'] if x['cell_type'] == 'code']
  assert len(cells) > 5
  assert all(x['outputs'] == [] for x in cells)
  assert all(x['execution_count'] is None for x in cells)


def test_pictures_are_small():
  folder = ROOT / 'docs/images'
  pictures = [p for p in folder.iterdir() if p.suffix in ('.svg', '.png')]
  assert sum(path.stat().st_size for path in pictures) < 2e6
