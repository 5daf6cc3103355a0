"""Runs that train for long, that are killed, and that lose one process.

pytest -m nightly tests/nightly/endurance_test.py -n 0 -s
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from abstractinator.runs import checkpoint
from tests.helpers import many_processes
from tests.helpers.many_processes import assert_same_state, finish, metrics

pytestmark = pytest.mark.nightly

_LONG, _SAMPLED = 20_000, 500
_STEPS, _INTERVAL = 240, 20
_LEVELS = [f'--config.model.levels[{i}].d_model=8' for i in range(2)]
_RUN = [
  '--config.log_interval=10',
  '--config.eval_interval=120',
  '--config.eval_batches=2',
  f'--config.checkpoint_interval={_INTERVAL}',
  '--config.max_to_keep=2',
]
_TOP_LM = [
  *_LEVELS,
  '--config.loss.curriculum_steps=80',
  '--config.model.top_lm.d_model=16',
  '--config.model.top_lm.stack.num_layers=1',
  '--config.model.top_lm.stack.ffn_dim=32',
]
# What a run may need more in its second half than in its first; memory in kB.
_MORE = {
  'memory': 20_000,
  'without a file': 20_000,
  'descriptors': 1,
  'threads': 2,
}
# Config, settings, processes, devices of each, and kills.
_KILLED = {
  'top_lm': ('tiny_2level', _TOP_LM, 1, 1, 17),
  'eight_devices': ('tiny', _LEVELS[:1], 1, 8, 17),
  'two_processes': ('tiny', _LEVELS[:1], 2, 1, 16),
}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return many_processes.write_corpus(tmp_path_factory.mktemp('corpus'))


def where_killed(workdir: pathlib.Path, since: float) -> str:
  """Returns what a killed process was doing, from the files that it left."""
  found = list(workdir.glob('checkpoints/*'))
  if any('tmp' in p.name and p.stat().st_mtime >= since for p in found):
    return 'during a save'
  if any(p.name.isdecimal() for p in found):
    return 'in between'
  return 'before the first checkpoint'


def usage(pid: int) -> dict[str, int]:
  """Returns memory in kB, descriptors and threads of a process.

  Pages of files count as resident as long as the system keeps them; pages
  without a file are what a process holds by itself.
  """
  lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  status = dict(line.split(':', 1) for line in lines)
  return {
    'memory': int(status['VmRSS'].split()[0]),
    'without a file': int(status['RssAnon'].split()[0]),
    'descriptors': len(os.listdir(f'/proc/{pid}/fd')),
    'threads': int(status['Threads']),
  }


def test_a_long_run_needs_no_more_at_its_end(corpus, tmp_path):
  args = [
    *many_processes.settings(corpus, 'tiny', _LONG),
    *_LEVELS[:1],
    '--config.data.batch_size=2',
    '--config.log_interval=100',
    f'--config.eval_interval={_SAMPLED}',
    '--config.eval_batches=2',
    f'--config.checkpoint_interval={_SAMPLED}',
    '--config.max_to_keep=2',
    f'--workdir={tmp_path}/run',
  ]
  started = many_processes.start(args, devices=1)
  metrics_path = tmp_path / 'run/metrics.jsonl'
  samples = []
  while started[0].poll() is None:
    step = 0
    if metrics_path.exists():
      lines = metrics_path.read_text().splitlines()
      step = json.loads(lines[-1])['step'] if lines else 0
    # Half a sample after evaluation and checkpoint, which need more.
    if step >= (len(samples) + 0.5) * _SAMPLED:
      samples.append(usage(started[0].pid))
      print(step, samples[-1], flush=True)
    time.sleep(0.2)
  ((code, _, err),) = finish(started)
  assert code == 0, err
  assert len(samples) == _LONG // _SAMPLED
  # Without the first ones, after which programs are still compiled. Memory
  # rises and falls over about 5,000 steps.
  middle = len(samples) // 2
  early, late = samples[middle // 5 : middle], samples[middle:]
  for name, more in _MORE.items():
    first, last = (max(x[name] for x in part) for part in (early, late))
    assert last <= first + more, (name, samples)


@pytest.mark.parametrize('name', _KILLED)
def test_killed_runs_end_like_one_never_killed(name, corpus, tmp_path):
  config, own, processes, devices, kills = _KILLED[name]
  args = [*many_processes.settings(corpus, config, _STEPS), *_RUN, *own]
  begun = time.time()
  flags = [*args, f'--workdir={tmp_path}/expected']
  many_processes.run(flags, processes, devices)
  # A run that compiles nothing takes less, which is measured below.
  whole = time.time() - begun
  print(f'{name}: {whole:.0f} seconds of a run never killed', flush=True)
  rng = random.Random(0)
  killed, ends, code = collections.Counter(), 0, 0
  # The last run has to end, too.
  while killed.total() < kills or code:
    workdir = tmp_path / f'run{ends}'
    flags = [*args, f'--workdir={workdir}']
    begun = time.time()
    started = many_processes.start(flags, processes, devices)
    if killed.total() < kills:
      seconds = rng.uniform(0, whole)
      if killed.total() % 2:
        # Most of a short run passes before its first step.
        wait_for_training(workdir, begun, started)
        seconds /= 3
      with contextlib.suppress(subprocess.TimeoutExpired):
        started[0].wait(seconds)
      for process in started:
        process.kill()
    ended = finish(started)
    code = ended[0][0]
    assert code in (0, -signal.SIGKILL), ended
    if code:
      killed[where_killed(workdir, begun)] += 1
    else:
      assert_same_run(workdir, tmp_path / 'expected')
      whole, ends = time.time() - begun, ends + 1
    print(f'{name}: {dict(killed)}, ends compared: {ends}', flush=True)
  assert killed['during a save'] + killed['in between'] > 0


def wait_for_training(
  workdir: pathlib.Path, begun: float, started: list[subprocess.Popen]
) -> None:
  """Waits until a run logs a step that has no checkpoint yet, or ends."""
  path = workdir / 'metrics.jsonl'

  def is_training():
    if started[0].poll() is not None:
      return True
    # Before that, lines of the process before are there.
    if not path.exists() or path.stat().st_mtime < begun:
      return False
    logged = [line['step'] for line in metrics(workdir)]
    saved = checkpoint.latest_step(str(workdir)) or 0
    return max(logged, default=0) > saved

  many_processes.wait_until(is_training, started)


def assert_same_run(a: pathlib.Path, b: pathlib.Path) -> None:
  assert_same_state(a, b, _STEPS)
  assert metrics(a) == metrics(b)


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('file_bytes', [20_000, None])
def test_a_fault_of_one_of_two_processes_ends_both(
  number, file_bytes, corpus, tmp_path
):
  """One process has a full disk, or is killed."""
  args = [*many_processes.settings(corpus, steps=5000), *_RUN, *_LEVELS[:1]]
  args += [f'--workdir={tmp_path}/run']
  limits = dict(file_bytes=file_bytes, limited=[number])
  both = many_processes.start(args, processes=2, devices=1, **limits)
  faulty, other = both[number], both[1 - number]
  if file_bytes is None:
    saved = tmp_path / f'run/checkpoints/{_INTERVAL}'
    many_processes.wait_until(saved.exists, both)
    faulty.kill()
  faulty.wait(600)
  other.wait(60)
  ended = finish(both)
  code, _, err = ended[1 - number]
  if (number, file_bytes, code) == (0, None, -signal.SIGABRT):
    # Through process 0 they are connected: jax may end the others first.
    assert 'another task died' in err, ended
    return
  assert code == 2, ended
  assert 'Traceback' not in err
  (line,) = [x for x in err.splitlines() if 'error: ' in x]
  reason = 'another process has ended'
  if file_bytes is not None:
    reason = f'process {number} cannot go on; its output says why'
    assert 'cannot be written (File too large)' in ended[number][2]
  assert f'error: {reason}' in line
