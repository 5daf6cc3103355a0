"""Runs of `train.py` as a user starts them."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from abstractinator.cli import main
from abstractinator.evaluation import units
from abstractinator.runs import metric_lines
from abstractinator.runs.lock import Lock
from tests.helpers import many_processes
from tests.helpers.many_processes import ROOT, assert_same_state, metrics

_STEPS, _INTERVAL = 30, 10


def _run(*args: str) -> tuple[int, str, str]:
  (ended,) = many_processes.finish(many_processes.start(args, devices=1))
  return ended


def _refused(capsys, *args: str) -> list[str]:
  """Lines of a run that is refused, in this process: nothing is compiled."""
  assert main.main(['train', *args], program='train.py') == 2
  out, err = capsys.readouterr()
  assert out == ''
  return err.splitlines()


@pytest.fixture(scope='module')
def corpus(tmp_path_factory) -> pathlib.Path:
  return many_processes.write_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture(scope='module')
def settings(corpus) -> list[str]:
  """Returns flags of a run that uses rngs and all kinds of statistics."""
  level = '--config.model.levels[0]'
  return [
    f'--config={ROOT}/configs/tiny.py',
    f'--config.data.train={corpus}/*.txt',
    '--config.data.validation_fraction=0.2',
    f'--config.max_steps={_STEPS}',
    f'--config.checkpoint_interval={_INTERVAL}',
    '--config.log_interval=5',
    '--config.eval_interval=15',
    '--config.eval_batches=2',
    '--config.max_to_keep=5',
    '--config.num_epochs=100',
    f'{level}.quantizer.kind=rvq',
    f'{level}.quantizer.start=kmeans',
    f'{level}.quantizer.codebook_size=16',
    # Codes are then replaced after the checkpoint, too.
    f'{level}.quantizer.reset_interval_steps=4',
    f'{level}.quantizer.reset_after_steps=4',
    f'{level}.expander.byte_dropout=0.3',
    f'{level}.expander.context=window',
    f'{level}.expander.window=6',
    '--config.data.sequence_length=32',
  ]


@pytest.fixture(scope='module')
def finished(settings, tmp_path_factory) -> pathlib.Path:
  """Returns the directory of a run that was not interrupted."""
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  many_processes.run([*settings, f'--workdir={workdir}'], devices=1)
  return workdir


@pytest.fixture(scope='module')
def finished_otherwise(settings, tmp_path_factory) -> pathlib.Path:
  """Returns another finished run, of one stage and of longer rows."""
  level = '--config.model.levels[0]'
  changes = [
    f'{level}.quantizer.kind=vq',
    f'{level}.quantizer.start=normal',
    f'{level}.expander.byte_dropout=0.0',
    f'{level}.expander.context=segment',
    '--config.data.sequence_length=128',
  ]
  workdir = tmp_path_factory.mktemp('finished_otherwise') / 'run'
  many_processes.run([*settings, *changes, f'--workdir={workdir}'], devices=1)
  return workdir


def test_killed_run_ends_like_one_never_killed(settings, finished, tmp_path):
  workdir = tmp_path / 'run'
  started = many_processes.start([*settings, f'--workdir={workdir}'], devices=1)
  saved = workdir / 'checkpoints' / str(_INTERVAL)
  many_processes.wait_until(saved.exists, started)
  time.sleep(random.random())
  started[0].send_signal(signal.SIGKILL)
  many_processes.finish(started)
  code, _, err = _run(f'--workdir={workdir}')
  assert code == 0, err
  assert err.startswith('reading documents: ')
  first = int(re.search(rf'steps (\d+) to {_STEPS}', err)[1])
  # Only lines with a path may be wide.
  assert all(len(x) <= 80 for x in err.splitlines() if str(tmp_path) not in x)
  assert _INTERVAL <= first <= _STEPS
  assert_same_state(workdir, finished, _STEPS)
  assert metrics(workdir) == metrics(finished)


@pytest.mark.parametrize(
  'name',
  [
    'finished',
    pytest.param('finished_otherwise', marks=pytest.mark.nightly),
  ],
)
def test_run_resumed_elsewhere_ends_the_same(name, request, tmp_path):
  finished = request.getfixturevalue(name)
  # A run that stops after its second checkpoint leaves these files.
  source, workdir = tmp_path / 'source', tmp_path / 'run'
  (source / 'checkpoints').mkdir(parents=True)
  shutil.copy(finished / 'config.json', source)
  saved = f'checkpoints/{2 * _INTERVAL}'
  shutil.copytree(finished / saved, source / saved)
  before = sorted(p.name for p in source.rglob('*'))
  code, out, err = _run(f'--resume_from={source}', f'--workdir={workdir}')
  assert code == 0, err
  assert str(workdir) in out
  assert sorted(p.name for p in source.rglob('*')) == before
  assert_same_state(workdir, finished, _STEPS)


def test_metrics_hold_what_the_readme_promises(finished):
  lines = metrics(finished)
  tags = set().union(*lines)
  assert tags >= {
    'step',
    'train/loss_total',
    'train/learning_rate',
    'eval/entropy_model_bits_per_byte',
    'eval/expander_bits_per_byte',
    'eval/end_bits_per_byte',
    'eval/bytes_per_segment',
    'eval/live_code_fraction',
    'eval/teacher_forced_byte_accuracy',
    'eval/free_running_byte_accuracy',
  }
  found = set().union(*metric_lines.read(finished)) - {'step'}
  assert 'perf/bytes_per_second' in found
  assert [tag for tag in found if not units.describe(tag)] == []
  losses = [x['train/loss_total'] for x in lines if 'train/loss_total' in x]
  assert len(losses) == _STEPS // 5
  assert losses[-1] < 0.8 * losses[0]
  assert lines[-1]['step'] == _STEPS


def test_tensorboard_reads_the_run(finished):
  reader = EventAccumulator(
    str(finished / 'tensorboard'),
    size_guidance={'scalars': 0, 'tensors': 0, 'histograms': 0},
  ).Reload()
  for tag in ('train/loss_total', 'train/learning_rate'):
    steps = [event.step for event in reader.Scalars(tag)]
    assert steps == list(range(5, _STEPS + 1, 5))
  last = [x for x in metrics(finished) if 'eval/loss_total' in x][-1]
  scalar = reader.Scalars('eval/loss_total')[-1]
  assert scalar.value == pytest.approx(last['eval/loss_total'], rel=1e-6)
  usage = reader.Histograms('eval/code_usage')[-1].histogram_value
  assert sum(usage.bucket) == usage.num > 0
  lengths = reader.Histograms('eval/segment_length')[-1].histogram_value
  assert sum(lengths.bucket) > 0
  assert lengths.bucket[0] == 0
  bits = reader.Histograms('eval/entropy_bits')[-1].histogram_value
  assert bits.min < bits.max <= 9
  image = reader.Images('eval/segments')[-1]
  assert image.encoded_image_string.startswith(b'\x89PNG')
  assert len(image.encoded_image_string) < 1e5
  text = reader.Tensors('eval/examples/text_summary')[-1]
  passage = text.tensor_proto.string_val[0].decode()
  assert '|' in passage
  assert 'from codes' in passage


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--config.data.train=/nowhere/*.txt'], '/nowhere/*.txt'),
    (['--config.model.levels[0].d_modle=3'], 'd_modle: unknown setting'),
    (['--config.max_steps=soon'], "max_steps: got 'soon', allowed: an integer"),
    (['--max_steps=3'], '--max_steps: unknown flag, allowed: --config.max_ste'),
    (['--config.model.levels[0].d_model=33'], 'levels[0].entropy_model'),
    (['--config=huge'], "config: got 'huge', allowed: a Python file, base"),
    (['--num_processes=two'], '--num_processes: got two'),
    (['--resume_from=/nowhere'], '/nowhere'),
    # Its config is large: the shapes of a state are needed to compare with.
    pytest.param(
      [
        f'--config={ROOT}/configs/stage2.py',
        '--config.model.top_lm.stack.num_layers=1',
        '--load_base_from=/nowhere',
      ],
      "load_base_from: workdir: got '/nowhere'",
      marks=pytest.mark.nightly,
    ),
    (['stray'], 'stray'),
    (['--resume_from=\udcff'], "--resume_from: got '\\udcff', allowed: a"),
    (['--resume_step=3'], '--resume_step: got 3, allowed: only with'),
  ],
)
def test_wrong_command_is_one_line_and_changes_nothing(
  args, message, tmp_path, capsys
):
  workdir = tmp_path / 'run'
  *before, line = _refused(capsys, *args, f'--workdir={workdir}')
  assert all(x.startswith('reading documents: ') for x in before)
  assert line.startswith('train.py: error: ')
  assert message in line
  assert not workdir.exists()


def test_a_run_keeps_programs_where_a_flag_says(tmp_path, capsys):
  file = tmp_path / 'file'
  file.write_text('')
  first, *_ = _refused(
    capsys,
    f'--config={ROOT}/configs/tiny.py',
    f'--config.data.train={tmp_path}/absent',
    f'--workdir={tmp_path}/run',
    f'--compilation_cache_dir={file}/programs',
  )
  assert first.startswith('compiled programs: not kept (')
  assert str(file) in first


def test_help_says_where_the_settings_are():
  code, out, err = _run('--help')
  assert (code, err) == (0, '')
  assert out.startswith('usage: train.py ')
  assert str(ROOT / 'configs' / 'default.py') in ''.join(out.split())
  assert '--config.PATH=VALUE gives a setting another value' in out


def _snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  files = [p for p in folder.rglob('*') if p.is_file()]
  return {str(p): p.read_bytes() for p in files}


def _cut_checkpoints(workdir):
  for step in (workdir / 'checkpoints').iterdir():
    shutil.rmtree(step)


def _spoil_metrics(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  lines[1] = 'not JSON'
  (workdir / 'metrics.jsonl').write_text('\n'.join(lines))


def _spoil_arrays(workdir):
  files = (workdir / f'checkpoints/{_STEPS}/state').rglob('*')
  arrays = max(files, key=lambda p: p.stat().st_size)
  data = bytearray(arrays.read_bytes())
  data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
  arrays.write_bytes(data)


def _spoil_rate(workdir):
  path = workdir / 'config.json'
  values = json.loads(path.read_text())
  values['optimizer']['learning_rate'] *= 2
  path.write_text(json.dumps(values))


def _spoil_config(workdir):
  path = workdir / 'config.json'
  path.write_bytes(path.read_bytes()[:-9] + b'\xff')


def _spoil_setting(workdir):
  path = workdir / 'config.json'
  path.write_text(path.read_text().replace('"seed"', '"sead"'))


def _spoil_position(workdir):
  path = workdir / f'checkpoints/{_STEPS}/data/metadata'
  path.write_text(path.read_text().replace('"next_row":', '"next_row": 1'))


def _spoil_metrics_of_checkpoint(workdir):
  path = workdir / f'checkpoints/{2 * _INTERVAL}/metrics/metrics'
  path.write_text('{"eval/loss_total": 1.0}')


def _spoil_step(workdir):
  path = workdir / 'metrics.jsonl'
  path.write_text('{"step": 1e999}\n' + path.read_text())


def _spoil_checkpoints(workdir):
  shutil.rmtree(workdir / 'checkpoints')
  (workdir / 'checkpoints').write_text('')


@pytest.mark.parametrize(
  ('spoil', 'args', 'message'),
  [
    (
      _spoil_rate,
      ['--config.max_steps=40'],
      'config.json: optimizer.learning_rate: got ',
    ),
    (_spoil_config, [], '/config.json: cannot be read as JSON'),
    (_spoil_setting, [], '/config.json: sead: unknown setting'),
    (
      _spoil_position,
      [],
      f'/checkpoints/{_STEPS}: this checkpoint is damaged (data: ',
    ),
    (
      _spoil_metrics_of_checkpoint,
      ['--config.max_steps=40'],
      f'/checkpoints/{2 * _INTERVAL}: this checkpoint is damaged (metrics: ',
    ),
    (_spoil_step, [], """metrics.jsonl:1: got '{"step": 1e999}'"""),
    (_spoil_checkpoints, [], '/checkpoints: is no directory'),
    (_cut_checkpoints, [], 'no checkpoint to resume from'),
    (_spoil_metrics, ['--config.max_steps=40'], "got 'not JSON'"),
    (_spoil_arrays, [], f'/checkpoints/{_STEPS}: this checkpoint is damaged'),
    (None, ['--config.max_steps=20'], 'more than the 30'),
    (None, ['--config.seed=7'], 'seed: got 7, allowed: 0'),
  ],
)
def test_run_that_cannot_go_on_is_left_as_it_is(
  finished, tmp_path, capsys, spoil, args, message
):
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir)
  if spoil is not None:
    spoil(workdir)
  before = _snapshot(workdir)
  # A space may stand between a flag and its value.
  *_, line = _refused(capsys, '--workdir', str(workdir), *args)
  assert message in line
  assert _snapshot(workdir) == before


def test_finished_run_has_nothing_to_go_on_with_elsewhere(
  finished, tmp_path, capsys
):
  workdir = tmp_path / 'run'
  resume = f'--resume_from={finished}'
  *_, line = _refused(capsys, resume, f'--workdir={workdir}')
  assert 'more than the 30' in line
  assert not workdir.exists()


@pytest.mark.nightly
def test_longer_run_says_that_its_rate_rises_again(finished, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir)
  code, _, err = _run(f'--workdir={workdir}', '--config.max_steps=33')
  assert code == 0
  (line,) = [x for x in err.splitlines() if 'rises again' in x]
  assert 'fallen for a run of 30 steps, not 33' in line


def test_other_data_is_refused_on_resume(finished, corpus, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir)
  extra = corpus / '0.txt'
  text = extra.read_text()
  try:
    extra.write_text(text + ' more')
    longer = '--config.max_steps=40'
    *_, line = _refused(capsys, f'--workdir={workdir}', longer)
  finally:
    extra.write_text(text)
  assert 'allowed: the data of the checkpoint' in line


@pytest.mark.nightly
def test_broken_loss_stops_the_run_and_says_which_term(settings, tmp_path):
  workdir = tmp_path / 'run'
  # Each step multiplies the parameters by -1e12.
  rates = ['learning_rate=1e3', 'weight_decay=1e9', 'warmup_steps=0']
  rates = [f'--config.optimizer.{rate}' for rate in rates]
  code, _, err = _run(*settings, *rates, f'--workdir={workdir}')
  assert code == 1
  last = err.splitlines()[-1]
  assert re.search(r'step \d+: (loss_\w+|gradient_norm) is (nan|inf)', last)
  assert 'there is no earlier checkpoint; start anew' in last
  command = f'python {ROOT}/train.py'
  assert f'{command} --config=resume:{workdir} --workdir=NEW' in last
  assert last.endswith('--config.optimizer.learning_rate=500')
  assert not (workdir / 'checkpoints' / str(_STEPS)).exists()


def _without_checkpoint(finished, workdir, last_step):
  """Leaves what a run does that is killed in its first checkpoint."""
  workdir.mkdir()
  shutil.copy(finished / 'config.json', workdir)
  lines = (finished / 'metrics.jsonl').read_text().splitlines(keepends=True)
  kept = [x for x in lines if json.loads(x)['step'] <= last_step]
  (workdir / 'metrics.jsonl').write_text(''.join(kept))
  (workdir / 'checkpoints/10.orbax-checkpoint-tmp').mkdir(parents=True)


@pytest.mark.nightly
def test_run_killed_in_its_first_checkpoint_starts_again(finished, tmp_path):
  workdir = tmp_path / 'run'
  _without_checkpoint(finished, workdir, 2 * _INTERVAL)
  code, _, err = _run(f'--workdir={workdir}')
  assert code == 0, err
  assert f'steps 0 to {_STEPS}' in err
  assert_same_state(workdir, finished, _STEPS)
  assert metrics(workdir) == metrics(finished)


def test_home_directory_in_flags(settings, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  flags = ['--workdir=~/run', '--resume_from=~/absent', '--resume_step=2']
  *_, line = _refused(capsys, *settings, *flags)
  assert f"workdir: got '{tmp_path}/absent'" in line
  assert not os.listdir(tmp_path)
  with Lock(str(tmp_path / 'run')):
    *_, line = _refused(capsys, *settings, flags[0])
  assert f'{tmp_path}/run: process {os.getpid()} on ' in line


def test_second_process_in_a_directory_changes_nothing(finished, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir)
  with Lock(str(workdir)):
    before = _snapshot(workdir)
    code, _, err = _run(f'--workdir={workdir}', '--config.max_steps=40')
    assert _snapshot(workdir) == before
  assert code == 2
  assert f'{workdir}: process {os.getpid()} on ' in err.splitlines()[-1]


@pytest.mark.nightly
@pytest.mark.parametrize(
  ('limit', 'path'),
  [
    (30_000, 'checkpoints: a checkpoint'),
    (5_000, r'(metrics\.jsonl|tensorboard/events\S+):'),
  ],
)
def test_disk_that_refuses_is_told_and_the_run_goes_on_after_it(
  settings, finished, tmp_path, limit, path
):
  """A limit on the size of files is refused as room on a disk is."""
  workdir = tmp_path / 'run'
  args = [*settings, f'--workdir={workdir}']
  started = many_processes.start(args, devices=1, file_bytes=limit)
  ((code, _, err),) = many_processes.finish(started)
  assert code == 2, err
  last = err.splitlines()[-1]
  assert re.fullmatch(
    rf'train.py: error: {workdir}/({path}|tensorboard/\S+:) cannot be written'
    r' \(File too large\);'
    ' there is no checkpoint yet: the same command starts anew',
    last,
  )
  assert 'Traceback' not in err
  assert len(err.splitlines()) < 20
  code, _, err = _run(*args)
  assert code == 0, err
  assert_same_state(workdir, finished, _STEPS)
  assert metrics(workdir) == metrics(finished)
