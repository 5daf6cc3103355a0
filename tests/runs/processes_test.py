"""Runs in two processes, and what a process finds out about the others."""

import dataclasses
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from abstractinator.runs import processes
from abstractinator.training import loop
from tests.helpers import many_processes, tiny_run
from tests.helpers.many_processes import (
  STEPS,
  assert_same_state,
  finish,
  losses,
  run,
  settings,
  start,
  wait_until,
)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return many_processes.write_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture(scope='module')
def finished(corpus, tmp_path_factory):
  """A run of one process that was never stopped."""
  workdir = tmp_path_factory.mktemp('finished') / 'run'
  run([*settings(corpus), f'--workdir={workdir}'])
  return workdir


@pytest.fixture(scope='module')
def finished_by_two(corpus, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('two') / 'run'
  run([*settings(corpus), f'--workdir={workdir}'], processes=2, devices=4)
  return workdir


def cut(source, workdir):
  """Copies a run as if it had stopped after its first checkpoint."""
  shutil.copytree(source, workdir)
  shutil.rmtree(workdir / 'checkpoints' / str(STEPS))


@pytest.mark.nightly
def test_two_processes_learn_as_one(finished, finished_by_two):
  assert len(losses(finished)) == STEPS
  np.testing.assert_allclose(
    losses(finished_by_two), losses(finished), rtol=0, atol=1e-5
  )


@pytest.mark.nightly
def test_two_processes_learn_two_levels_as_one_device(corpus, tmp_path):
  args = settings(corpus, 'tiny_2level')
  args += ['--config.loss.curriculum_steps=0']
  args += ['--config.loss.curriculum_stops=False']
  run([*args, f'--workdir={tmp_path}/one'], devices=1)
  run([*args, f'--workdir={tmp_path}/two'], processes=2, devices=4)
  assert len(losses(tmp_path / 'one')) == STEPS
  np.testing.assert_allclose(
    losses(tmp_path / 'two'), losses(tmp_path / 'one'), rtol=0, atol=1e-5
  )


def test_a_signal_to_one_of_two_stops_both_at_one_step(corpus, tmp_path):
  workdir = tmp_path / 'run'
  # This config compiles fastest.
  args = settings(corpus, 'entropy_pretrain', steps=1000)
  args.append(f'--workdir={workdir}')
  both = start(args, processes=2, devices=4)
  metrics = workdir / 'metrics.jsonl'
  wait_until(lambda: metrics.exists() and losses(workdir), both)
  both[1].send_signal(signal.SIGTERM)
  ended = finish(both)
  assert [code for code, _, _ in ended] == [143, 143], ended
  step = int(re.search(r'stopped at step (\d+), saved', ended[0][2])[1])
  assert 'stopped' not in ended[1][2]
  assert [p.name for p in (workdir / 'checkpoints').iterdir()] == [str(step)]
  assert len(losses(workdir)) == step


@pytest.mark.nightly
@pytest.mark.parametrize('number', [1, 2])
def test_a_stopped_run_ends_like_one_never_stopped(
  number, corpus, finished, finished_by_two, tmp_path
):
  workdir = tmp_path / 'run'
  shape = dict(processes=number, devices=8 // number)
  args = [*settings(corpus), f'--workdir={workdir}', '--config.log_interval=10']
  started = start(args, **shape)
  wait_until((workdir / 'config.json').exists, started)
  # In the middle of compilation, so that the run stops at its first step.
  time.sleep(3)
  started[-1].send_signal(signal.SIGTERM)
  assert {code for code, _, _ in finish(started)} == {143}
  run([f'--workdir={workdir}'], **shape)
  expected = finished if number == 1 else finished_by_two
  assert_same_state(workdir, expected, STEPS)


@pytest.mark.nightly
@pytest.mark.parametrize(
  ('number', 'devices'), [(1, 8), (1, 4), (1, 2), (1, 1), (2, 4)]
)
def test_a_checkpoint_of_eight_devices_goes_on_anywhere(
  number, devices, finished, tmp_path
):
  workdir = tmp_path / 'run'
  cut(finished, workdir)
  run([f'--workdir={workdir}'], processes=number, devices=devices)
  np.testing.assert_allclose(
    losses(workdir), losses(finished), rtol=0, atol=1e-5
  )
  if (number, devices) == (1, 8):
    assert_same_state(workdir, finished, STEPS)


@pytest.mark.nightly
def test_a_checkpoint_of_two_processes_goes_on_in_one(
  finished_by_two, tmp_path
):
  for number, devices in ((1, 8), (2, 4)):
    workdir = tmp_path / f'run{number}'
    cut(finished_by_two, workdir)
    run([f'--workdir={workdir}'], processes=number, devices=devices)
    np.testing.assert_allclose(
      losses(workdir), losses(finished_by_two), rtol=0, atol=1e-5
    )
  assert_same_state(tmp_path / 'run2', finished_by_two, STEPS)


@pytest.mark.nightly
def test_two_stages_are_the_same_everywhere(corpus, tmp_path):
  found = {}
  for name, shape in {
    'one device': dict(devices=1),
    'eight': dict(devices=8),
    'two processes': dict(processes=2, devices=4),
  }.items():
    base, top = tmp_path / name / 'base', tmp_path / name / 'top'
    run([*settings(corpus, 'stage1'), f'--workdir={base}'], **shape)
    load = f'--load_base_from={base}'
    run([*settings(corpus, 'stage2'), load, f'--workdir={top}'], **shape)
    found[name] = [losses(base), losses(top)]
  for name, of_stages in found.items():
    np.testing.assert_allclose(
      of_stages, found['one device'], rtol=0, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ((None, 2, 0), 'coordinator_address: got None, allowed: all of'),
    (('host:1', None, None), 'num_processes: got None'),
    (('host:1', 2, 2), 'process_id: got 2, allowed: 0 to 1'),
    (('host:1', 0, 0), 'num_processes: got 0, allowed: at least 1'),
    (('host', 2, 0), "coordinator_address: got 'host', allowed: HOST:PORT"),
    (('1234', 2, 0), "coordinator_address: got '1234', allowed: HOST:PORT"),
    ((':1', 2, 0), "coordinator_address: got ':1', allowed: HOST:PORT"),
  ],
)
def test_processes_have_to_be_told_all_of_it(given, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    processes.join(*given, environment={})


def test_a_variable_that_is_no_number_is_named():
  with pytest.raises(ValueError, match="JAX_NUM_PROCESSES: got 'two', allowed"):
    processes.join('host:1', None, 0, {'JAX_NUM_PROCESSES': 'two'})


@pytest.mark.parametrize(
  ('vendor', 'kind', 'platforms', 'expected'),
  [
    ('0x1ae0', '0xff0000', '', True),
    ('0x1ae0', '0xff0000', 'cpu', False),
    # A GPU, and the network card of a machine of Google's.
    ('0x10de', '0x030200', '', False),
    ('0x1ae0', '0x020000', '', False),
  ],
)
def test_a_tpu_is_more_than_a_device_node(
  vendor, kind, platforms, expected, monkeypatch, tmp_path
):
  monkeypatch.setattr(processes.importlib.util, 'find_spec', lambda name: name)
  device = tmp_path / 'sys/bus/pci/devices/0000:00:04.0'
  device.mkdir(parents=True)
  (device / 'vendor').write_text(f'{vendor}\n')
  (device / 'class').write_text(f'{kind}\n')
  environment = {'JAX_PLATFORMS': platforms}
  assert not processes.is_cluster(environment, str(tmp_path))
  (tmp_path / 'dev/vfio').mkdir(parents=True)
  (tmp_path / 'dev/vfio/0').touch()
  assert processes.is_cluster(environment, str(tmp_path)) == expected


@pytest.mark.parametrize(
  ('environment', 'calls'),
  [
    ({}, []),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'host:1',
        'JAX_NUM_PROCESSES': '4',
        'JAX_PROCESS_ID': '3',
      },
      [
        {
          'coordinator_address': 'host:1',
          'num_processes': 4,
          'process_id': 3,
        }
      ],
    ),
    ({'SLURM_STEP_NUM_TASKS': '2'}, [{}]),
    # A batch script that starts no step is alone.
    ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '2'}, []),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, [{}]),
    ({'TPU_WORKER_HOSTNAMES': 'a'}, []),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'}, []),
  ],
)
def test_a_cluster_is_recognized(environment, calls, monkeypatch):
  made = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda **given: made.append(given)
  )
  monkeypatch.setattr(processes.glob, 'glob', lambda pattern: [])
  processes.join(None, None, None, environment)
  assert made == calls


def test_a_process_alone_hears_of_the_signal_once(capfd):
  both = signal.SIGTERM, signal.SIGINT
  before = [signal.getsignal(number) for number in both]
  preemption = processes.Preemption()
  for number in both:
    with preemption:
      assert not preemption.reached(1)
      signal.raise_signal(number)
      assert preemption.reached(2)
      line = f'{number.name}: stopping after this step or batch'
      assert line in capfd.readouterr().err
      # The next one would end the process.
      assert [signal.getsignal(number) for number in both] == before
  with preemption:
    assert signal.getsignal(signal.SIGTERM) is not before[0]
  assert [signal.getsignal(number) for number in both] == before


def test_a_signal_that_is_ignored_stays_so():
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    with processes.Preemption() as preemption:
      signal.raise_signal(signal.SIGINT)
      assert not preemption.reached(1)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGINT, before)


def test_a_process_alone_agrees_with_itself():
  assert processes.agree('runs/ä') == 'runs/ä'
  processes.require_equal('data', 'x')
  with pytest.raises(ValueError, match='no'), processes.together():
    raise ValueError('no')
  with pytest.raises(OSError, match='gone'), processes.together():
    raise OSError('gone')


@pytest.mark.parametrize('error', [ValueError, OSError])
def test_all_hear_of_one_that_cannot_open_its_run(
  error, corpus, tmp_path, monkeypatch
):
  """The other processes wait at the end of the block, and only there."""
  gathered = []

  def gather(array):
    gathered.append(array.shape)
    return np.array([array, False])

  def fail(config):
    raise error('broken')

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(processes.multihost_utils, 'process_allgather', gather)
  config = tiny_run.config()
  data = dataclasses.replace(config.data, train=f'{corpus}/*.txt')
  config = dataclasses.replace(config, data=data)
  monkeypatch.setattr(loop.sharding, 'process_shard', lambda *unused: (0, 1))
  with processes.together():
    loop.Run(config, str(tmp_path / 'run'))
  assert gathered == [()]
  monkeypatch.setattr(loop, 'open_rows', fail)
  with pytest.raises(error, match='broken'), processes.together():
    loop.Run(config, str(tmp_path / 'run'))
  assert gathered == [(), ()]


def test_two_with_other_flags_do_not_start(corpus, tmp_path):
  args = [*settings(corpus), f'--workdir={tmp_path}/run']
  own = [[], ['--profile_steps=1:2']]
  for code, _, err in finish(start(args, processes=2, devices=1, own=own)):
    assert code == 2
    assert '--profile_steps: differs between processes 0 and 1' in err
