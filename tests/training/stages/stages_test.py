"""Runs that build on the parameters of other runs."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator import api, codes_corpus, metrics, top_lm_losses
from abstractinator.byte_vocab import PAD_ID, encode
from abstractinator.cli import main
from abstractinator.config import RunConfig
from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.data.packed_codes import PackedCodes
from abstractinator.training import base as base_runs
from abstractinator.training import checkpoint, run_rows, sharding
from abstractinator.training.loop import Run
from abstractinator.training.model import make_model
from abstractinator.training.program import make_program
from abstractinator.training.state import variables_of
from abstractinator.types import Batch
from configs import (
  entropy_frozen,
  entropy_pretrain,
  stage1,
  stage2,
  tiny,
  tiny_2level,
)
from tests import tiny_run

make_mesh = sharding.make_mesh


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """One of the devices of the tests, for which less is to compile."""
  with pytest.MonkeyPatch.context() as patch:
    devices = jax.devices()[:1]
    patch.setattr(sharding, 'make_mesh', lambda c: make_mesh(c, devices))
    yield


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp('corpus')
  words = 'the quick brown fox jumps over the lazy dog and so on'.split()
  rng = np.random.default_rng(0)
  for i in range(20):
    (folder / f'{i}.txt').write_text(
      ' '.join(rng.choice(words) for _ in range(99))
    )
  return folder


def small(values, corpus, edit=lambda values: None) -> RunConfig:
  """A config made small, with a few steps."""
  values.data.train = f'{corpus}/*.txt'
  values.data.sequence_length, values.data.batch_size = 32, 8
  values.max_steps, values.num_epochs = 6, 10.0
  values.log_interval, values.eval_interval, values.checkpoint_interval = (
    3,
    6,
    3,
  )
  values.eval_batches = values.final_eval_batches = 1
  values.optimizer.warmup_steps = 2
  values.loss.curriculum_steps, values.loss.curriculum_stops = 0, False
  for level in values.model.levels:
    tiny.make_small(level, d_model=16)
    level.quantizer.codebook_size = 16
    level.quantizer.reset_interval_steps = 2
    level.quantizer.reset_after_steps = 2
    level.segmentation.max_length = 8
    level.segmentation.capacity_length = 2.0
  if values.model.top_lm is not None:
    values.model.top_lm.d_model = 16
    values.model.top_lm.stack.update(num_layers=1, num_heads=2, ffn_dim=16)
  edit(values)
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


def train(config, workdir):
  """A whole run; its first variables, its last ones, its last metrics."""
  run = Run(config, str(workdir))
  state = run.start()
  first = jax.device_get(variables_of(state))
  tags = run.train(state)
  last = checkpoint.restore_variables(
    str(workdir),
    {name: getattr(run._abstract, name) for name in ('params', 'collections')},
  )
  last = jax.device_get({'params': last['params'], **last['collections']})
  return first, last, tags, run


def take_steps(config, workdir, steps=6):
  """As `train`, without evaluation and checkpoints; metrics of a step."""
  run = Run(config, str(workdir))
  state = run.start()
  first = jax.device_get(variables_of(state))
  rows = run._train_batches(0)
  for _ in range(steps):
    state, found = run._step(state, sharding.shard_batch(next(rows), run._mesh))
  found, last = jax.device_get((found, variables_of(state)))
  return first, last, found, run


def by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def changed(a, b):
  a, b = by_path(a), by_path(b)
  assert a.keys() == b.keys()
  return {path for path in a if not np.array_equal(a[path], b[path])}


@pytest.fixture(scope='module')
def base(corpus, tmp_path_factory):
  """A run, and what it has of parameters and statistics."""
  workdir = tmp_path_factory.mktemp('base')
  config = small(stage1.get_config(), corpus)
  tiny_run.save(workdir, config)
  return workdir, variables_of(tiny_run.random_state(config, seed=3))


@pytest.fixture(scope='module')
def second(base, corpus, tmp_path_factory):
  """A second stage, whose base is gone after it."""
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
  loaded = by_path(first)
  for path, leaf in by_path(before).items():
    np.testing.assert_array_equal(leaf, loaded[path], err_msg=path)
  moved = changed(first, last)
  # Learned weights of codes that no row has may stay.
  assert moved
  assert all(path.startswith('params/top_lm/') for path in moved)
  assert any('stack' in path for path in moved)
  moments = by_path(run._abstract.opt_state)
  kept = {path for path in moments if '/compressor/' in path}
  assert not kept
  assert any('/top_lm/' in path for path in moments)


def test_the_second_stage_trains_the_top_lm_alone(base, second):
  first, last, tags, run = second[2]
  assert_top_lm_alone_is_trained(base[1], first, last, run)
  assert np.isfinite(tags['eval/loss_total'])
  assert tags['eval/top_lm_expander_bits_per_byte'] > 0


def test_steps_of_a_continuous_one_train_it_alone(base, corpus, tmp_path):
  def edit(values):
    values.load_base_from = str(base[0])
    values.model.top_lm.mode = 'continuous'

  config = small(stage2.get_config(), corpus, edit)
  first, last, found, run = take_steps(config, tmp_path)
  assert_top_lm_alone_is_trained(base[1], first, last, run)
  summary = metrics.summarize(found)
  assert np.isfinite(summary['loss_total'])
  assert summary['top_lm_expander_bits_per_byte'] > 0


def test_a_stage_goes_on_without_its_base_but_from_no_other(
  base, second, tmp_path
):
  """What was loaded lies in the checkpoints of the run itself."""
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


def test_averages_are_loaded_and_stay_where_frozen(
  corpus, tmp_path, monkeypatch
):
  """On all devices."""
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
  assert metrics.summarize(found)['top_lm_expander_bits_per_byte'] > 0


def test_a_pretrained_entropy_model_stays_as_it_is(corpus, tmp_path):
  source, workdir = tmp_path / 'source', tmp_path / 'run'
  _, trained, tags, _ = train(
    small(entropy_pretrain.get_config(), corpus), source
  )
  names = set(trained['params']['compressor'])
  assert (set(trained['params']), names) == ({'compressor'}, {'entropy_model'})
  assert set(tags) >= {'eval/entropy_model_bits_per_byte', 'eval/loss_total'}
  assert 'eval/free_running_byte_accuracy' not in tags

  def edit(values):
    values.model.levels[0].load_entropy_model_from = str(source)

  first, last, _, _ = take_steps(
    small(entropy_frozen.get_config(), corpus, edit), workdir
  )
  for variables in (first, last):
    assert not changed(
      trained['params'],
      {
        'compressor': {
          'entropy_model': variables['params']['compressor']['entropy_model']
        }
      },
    )
  assert 'params/compressor/quantizer/down/kernel' in changed(first, last)


@pytest.mark.parametrize('freeze', [True, False])
def test_an_entropy_model_has_moments_unless_it_is_frozen(freeze, corpus):
  """What has none is hidden from the optimizer; see the steps above."""

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


def start(config, workdir):
  """What is said of a run that cannot start."""
  with pytest.raises(ValueError) as error:
    Run(config, str(workdir)).start()
  assert not workdir.exists() or not list(workdir.iterdir())
  message = str(error.value)
  assert '\n' not in message
  return message


@pytest.fixture(scope='module')
def second_begun(corpus, tmp_path_factory):
  """The state of step 0 of a second stage, and its shapes."""
  workdir = tmp_path_factory.mktemp('begun')
  run = Run(small(stage2.get_config(), corpus), str(workdir))
  return run._init(jax.random.key(0)), run._abstract


@pytest.mark.parametrize(
  ('case', 'parts'),
  [
    ('nowhere', ('load_base_from: got None', 'directory of a run')),
    ('missing', ('load_base_from: got', 'nothing_here', 'no checkpoint')),
    ('entropy model', ('/codebook_KC is not in the checkpoint',)),
    ('part', ('params/compressor/pooling/', ' is not in the checkpoint')),
    ('more', ('params/compressor/extra', 'is in the checkpoint but not')),
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
    # Else that it is another level would be said first.
    level = dataclasses.replace(
      wanted.model.levels[0], freeze=False, freeze_entropy_model=False
    )
    model = dataclasses.replace(config.model, levels=(level,))
    config = dataclasses.replace(config, model=model)

  def broken(state):
    compressor = dict(state.params['compressor'])
    if case == 'part':
      del compressor['pooling']
    if case == 'more':
      compressor['extra'] = jnp.zeros(3)
    if case == 'shape':
      down = {'kernel': jnp.zeros((16, 5))}
      compressor['quantizer'] = compressor['quantizer'] | {'down': down}
    params = state.params | {'compressor': compressor}
    return state.replace(params=params)

  if case not in ('nowhere', 'missing'):
    tiny_run.save(tmp_path / 'base', config, edit=broken)
  if case == 'nowhere':
    message = start(wanted, tmp_path / 'run')
  else:
    # What `start` calls.
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


def codes_config(base, codes, edit=lambda values: None):
  """Of a top LM that learns from codes alone."""

  def edit_all(values):
    values.objective, values.load_base_from = 'top_lm', str(base)
    values.model.top_lm.expand = False
    values.data.train = str(codes)
    edit(values)

  return small(stage2.get_config(), codes, edit_all)


@pytest.fixture(scope='module')
def codes(base, corpus, tmp_path_factory):
  directory = tmp_path_factory.mktemp('codes') / 'out'
  args = [f'--data={corpus}/*.txt', f'--out={directory}', '--format=npz']
  assert main(['encode', str(base[0]), *args, '--shard_bytes=4000']) == 0
  return directory


def test_a_top_lm_learns_from_codes_alone(base, codes, tmp_path, capsys):
  workdir, before = base
  config = codes_config(workdir, codes)
  first, last, tags, run = train(config, tmp_path / 'run')
  loaded = by_path(first)
  for path, leaf in by_path(before).items():
    np.testing.assert_array_equal(leaf, loaded[path], err_msg=path)
  moved = changed(first, last)
  assert moved
  assert all(path.startswith('params/top_lm/') for path in moved)
  # Every code is in a row.
  rows = [run._train_rows, run._validation_rows]
  texts = [x for shard in codes_corpus.read_corpus(str(codes)) for x in shard]
  assert len(texts) == sum(x.num_documents for x in rows) == 20
  assert 0 < tags['eval/top_lm_code_bits_per_code'] < 5
  # It is a whole model, which goes on with texts.
  level = api.load(str(tmp_path / 'run'))
  ((text,),) = level.generate(b'the', max_new_bytes=4)
  assert isinstance(text, bytes)
  assert main(['evaluate', str(tmp_path / 'run')]) == 2
  assert '--data: got none' in capsys.readouterr().err


def test_codes_alone_cost_what_they_do_in_a_pyramid(base, codes, tmp_path):
  config = codes_config(base[0], codes)
  state = tiny_run.random_state(config, seed=1)
  model, variables = make_model(config, 'cpu'), variables_of(state)
  texts = [b'the lazy dog', b'jumps', b'over and over again, so']
  ids_BS = np.full((3, 32), PAD_ID, np.int32)
  for row, text in enumerate(texts):
    ids_BS[row, : len(text) + 1] = encode(text)
  document_BS = np.where(ids_BS == PAD_ID, -1, 0)
  batch = Batch(ids_BS, document_BS, np.arange(3))
  output = jax.jit(model.apply)(variables, batch)
  expected = top_lm_losses.terms(output.top_lm, output.top_codes)
  is_code_BU = np.asarray(output.top_codes.document_BP) >= 0
  codes_BU = np.asarray(output.top_codes.codes_BP)
  documents = [
    MemoryDocument(str(i), codes_U[is_code_U].astype(np.int32).tobytes())
    for i, (codes_U, is_code_U) in enumerate(
      zip(codes_BU, is_code_BU, strict=True)
    )
  ]
  # All in one row, one after the other.
  (row,) = PackedCodes(
    Documents(documents),
    sequence_length=int(is_code_BU.sum()) + 3,
    end_offset=16,
    bytes_per_code=2.0,
  )
  row = Batch(row['ids'][None], row['document'][None], row['row'][None])
  predicted = jax.jit(functools.partial(model.apply, method='predict_codes'))(
    variables, row
  )
  found = top_lm_losses.terms(predicted.top_lm, predicted.top_codes)
  assert expected['top_lm_code'] > 1
  assert expected['top_lm_end'] > 1
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_codes_of_another_model_are_refused(base, codes, corpus, tmp_path):
  # What is saved at another step is another draw of all parameters.
  config = small(stage1.get_config(), corpus)
  tiny_run.save(tmp_path / 'other', config, steps=(4,))
  config = codes_config(tmp_path / 'other', codes)
  with pytest.raises(ValueError, match=r'data\.train: got .* codes of model'):
    Run(config, str(tmp_path / 'run'))

  def thaw(values):
    values.model.levels[0].freeze = False
    values.load_base_from = None

  with pytest.raises(ValueError, match="objective: got 'top_lm', allowed"):
    codes_config(base[0], codes, thaw)
  config = codes_config(base[0], corpus)
  with pytest.raises(ValueError, match=r'has no manifest\.json'):
    Run(config, str(tmp_path / 'run'))


def test_codes_that_are_held_out_are_not_trained_on(base, codes):
  def edit(values):
    values.data.validation = str(codes)

  with pytest.raises(ValueError, match=r'data\.validation: 20 of its 20'):
    run_rows.open_code_rows(codes_config(base[0], codes, edit))
