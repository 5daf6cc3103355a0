"""`abstractinator lm-eval`, with the harness itself, on local tasks."""

import functools
import importlib.util
import json
import math
import sys

import datasets
import pytest
from lm_eval.api.instance import Instance

import abstractinator
from abstractinator.cli.lm_eval_model import HarnessModel
from abstractinator.cli.main import main
from abstractinator.evaluation.evaluate import texts_bits
from abstractinator.evaluation.evaluator import open_run
from abstractinator.evaluation.windows import Passage
from abstractinator.types import bytes_to_ids
from tests.helpers import tiny_run

# Rows have 32 ids: the first text is read through two windows. No two windows
# fit in one row: such a row could run short of slots, which `evaluate` counts.
TEXTS = [
  'So a text, and as long as that, with an été. ',
  'b' * 20,
  'Another, of 25 bytes: ü.\n',
]
QUESTIONS = [
  {'question': 'One and one is', 'choices': ['two', 'six'], 'answer': 0},
  {'question': 'A dog can', 'choices': ['sing', 'bark', 'fly'], 'answer': 1},
  {'question': 'Snow is', 'choices': ['white', 'hot'], 'answer': 0},
]
LINES = '\n'.join


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory):
  configs = {'level': tiny_run.config(), 'pyramid': tiny_run.pyramid_config()}
  found = {}
  for name, config in configs.items():
    path = tmp_path_factory.mktemp(name)
    tiny_run.save(path, config)
    found[name] = str(path)
  return found


@pytest.fixture
def tasks(tmp_path, monkeypatch):
  """Returns a directory of task files; the network is not used."""
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
  cache = tmp_path / 'cache'
  for name, kind, rows, settings in [
    (
      'choice',
      'multiple_choice',
      QUESTIONS,
      {
        'doc_to_text': '{{question}}',
        'doc_to_choice': '{{choices}}',
        'doc_to_target': '{{answer}}',
        'metric_list': [{'metric': 'acc'}],
      },
    ),
    (
      'perplexity',
      'loglikelihood_rolling',
      [{'text': text} for text in TEXTS],
      {
        'doc_to_text': '',
        'doc_to_target': '{{text}}',
        'metric_list': [{'metric': 'bits_per_byte'}],
      },
    ),
  ]:
    data = tmp_path / f'{name}.jsonl'
    data.write_text(LINES(map(json.dumps, rows)) + '\n')
    task = {
      'task': f'local_{name}',
      'dataset_path': 'json',
      'dataset_kwargs': {
        'data_files': {'test': str(data)},
        'cache_dir': str(cache),
      },
      'test_split': 'test',
      'output_type': kind,
    }
    # JSON is YAML.
    (tmp_path / f'{name}.yaml').write_text(json.dumps(task | settings))
  return tmp_path


@pytest.mark.parametrize(
  'name', ['level', pytest.param('pyramid', marks=pytest.mark.nightly)]
)
def test_tasks_of_local_files(name, workdirs, tasks, capsys):
  workdir = workdirs[name]
  # One size of batches, one compilation.
  args = ['lm-eval', workdir, f'--include_path={tasks}', '--json']
  args += ['--batch_size=4']
  assert main([*args, '--tasks=local_choice,local_perplexity']) == 0
  figures = json.loads(capsys.readouterr().out)
  assert figures['likelihood'] == 'hierarchy'
  data = f'--data={tasks}/perplexity.jsonl'
  args = ['evaluate', workdir, data, '--json', '--no_decode']
  assert main([*args, '--batch_size=4']) == 0
  expected = json.loads(capsys.readouterr().out)
  got = figures['results']['local_perplexity']['bits_per_byte']
  assert got == pytest.approx(expected['total_bits_per_byte'], rel=1e-5)
  right = 0
  for row in QUESTIONS:
    scored = bits(workdir, [(row['question'], f' {x}') for x in row['choices']])
    right += scored.index(min(scored)) == row['answer']
  assert figures['results']['local_choice']['acc'] == right / len(QUESTIONS)


def test_the_text_is_the_table_of_the_harness(workdirs, tasks, capsys):
  args = ['lm-eval', workdirs['level'], f'--include_path={tasks}']
  assert main([*args, '--batch_size=4', '--tasks=local_choice']) == 0
  header, _, row, *_, last = capsys.readouterr().out.splitlines()
  assert header.split('|')[1].strip() == 'Tasks'
  assert row.split('|')[1].strip() == 'local_choice'
  assert last == 'likelihoods of the hierarchy'


def bits(workdir, pairs, **options):
  passages = [
    Passage(bytes_to_ids((a + b).encode(), add_eos=False), len(a))
    for a, b in pairs
  ]
  return [
    x.bits for x in texts_bits(evaluator_of(workdir), passages, **options)
  ]


@functools.cache
def evaluator_of(workdir):
  return open_run(workdir, batch_size=4)


def test_likelihoods_of_an_entropy_model_add_up(workdirs):
  """Exact likelihoods obey the chain rule if no context is cut away."""
  parts = ['A text', ' of three', ' parts, x']
  pairs = [(''.join(parts[:i]), parts[i]) for i in range(3)]
  *found, whole = bits(
    workdirs['level'], [*pairs, ('', ''.join(parts))], entropy_model_only=True
  )
  assert sum(found) == pytest.approx(whole, rel=1e-5)
  assert min(found) > 1


def test_a_bound_depends_on_the_context_alone(workdirs):
  pairs = [('a', 'bc'), ('z', 'bc'), ('x' * 99 + 'a', 'bc'), ('', 'bc' * 40)]
  found = bits(workdirs['level'], [*pairs, ('abc', '')])
  assert len(set(found)) == 5
  assert all(math.isfinite(x) and x > 0 for x in found[:4])
  assert found[4] == 0
  # It does not depend on the other passages of a call.
  assert bits(workdirs['level'], pairs[:1]) == found[:1]


def requests(args):
  return [Instance('any', {}, x, i) for i, x in enumerate(args)]


def test_greedy_is_what_is_generated(workdirs):
  model = HarnessModel(evaluator_of(workdirs['level']))
  settings = {'until': ['\n\n'], 'max_gen_toks': 6, 'do_sample': False}
  (text,) = model.generate_until(requests([('So', settings)]))
  pyramid = abstractinator.load(workdirs['level'])
  ((new,),) = pyramid.generate(b'So', max_new_bytes=6)
  assert text == new.decode('utf-8', errors='replace')
  assert len(new) > 1
  settings = settings | {'until': text[-1]}
  (cut,) = model.generate_until(requests([('So', settings)]))
  assert cut == text[: text.index(text[-1])]
  for name in ('max_new_tokens', 'max_tokens', 'max_completion_tokens'):
    assert model.generate_until(requests([('So', {name: 6})])) == [text]
  # Bytes, because those that this model generates are not UTF-8.
  greedy = [(b'So', new), (b'So', new[:-1] + b'~'), (b'', new)]
  assert model.is_greedy(greedy) == [True, False, False]
  pairs = [('So', text), ('', text), ('So', '')]
  scored = model.loglikelihood(requests(pairs))
  scores, is_greedy = zip(*scored, strict=True)
  assert is_greedy == (False, False, True)
  expected = [-x * math.log(2) for x in bits(workdirs['level'], pairs)]
  assert scores == pytest.approx(expected)
  # An empty continuation needs no generation.
  assert model.is_greedy([(b'So', b''), (b'', b'')]) == [True, True]
  with pytest.raises(ValueError, match='generation_kwargs: got beams, allowed'):
    model.generate_until(requests([('So', {'beams': 2})]))


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    pytest.param(
      ['--tasks=no_such_task'],
      '--tasks: got no_such_task, allowed: tasks of',
      marks=pytest.mark.nightly,
    ),
    (['--tasks=arc_easy', '--stride=99'], 'stride: got 99, allowed: 1 to'),
  ],
)
def test_bad_input(args, message, workdirs, capsys):
  assert main(['lm-eval', workdirs['level'], *args]) == 2
  assert message in capsys.readouterr().err


def test_without_the_harness_the_extra_is_named(workdirs, capsys, monkeypatch):
  monkeypatch.delitem(sys.modules, 'lm_eval', raising=False)
  find_spec = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name: None if name == 'lm_eval' else find_spec(name),
  )
  assert main(['lm-eval', workdirs['level'], '--tasks=x']) == 2
  error = capsys.readouterr().err
  assert "pip install 'abstractinator[eval]'" in error


@pytest.mark.parametrize(
  ('arg', 'allowed'),
  [
    ('--num_fewshot=-1', 'at least 0'),
    ('--limit=-1', 'at least 1'),
    ('--limit=0', 'at least 1'),
    ('--include_path=/nope', 'a directory'),
  ],
)
def test_wrong_options_are_refused_before_a_run_is_read(arg, allowed, capsys):
  assert main(['lm-eval', 'no_run', '--tasks=any', arg]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f'error: {arg.partition("=")[0]}: got' in line
  assert f'allowed: {allowed}' in line
