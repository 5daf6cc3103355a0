"""Runs of `train.py` in one or several processes on this machine."""

import json
import os
import pathlib
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

from abstractinator.runs import checksums, metric_lines
from tests.helpers import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 20


def write_corpus(folder: pathlib.Path) -> pathlib.Path:
  words = 'the quick brown fox jumps over the lazy dog and so on'.split()
  rng = random.Random(0)
  for i in range(40):
    text = ' '.join(rng.choice(words) for _ in range(200))
    (folder / f'{i}.txt').write_text(text)
  return folder


def settings(
  corpus: pathlib.Path, config: str = 'tiny', steps: int = STEPS
) -> list[str]:
  return [
    f'--config={ROOT}/configs/{config}.py',
    f'--config.data.train={corpus}/*.txt',
    '--config.data.validation_fraction=0.2',
    '--config.data.sequence_length=32',
    '--config.data.batch_size=8',
    f'--config.max_steps={steps}',
    '--config.log_interval=1',
    f'--config.eval_interval={steps}',
    '--config.final_eval_batches=1',
    f'--config.checkpoint_interval={steps // 2}',
    '--config.max_to_keep=5',
    '--config.num_epochs=1000',
    '--config.optimizer.warmup_steps=5',
    '--config.optimizer.learning_rate=1e-3',
  ]


def start(
  args: Sequence[str],
  processes: int = 1,
  devices: int = 8,
  own: Sequence[list[str]] = (),
  file_bytes: int | None = None,
  limited: Sequence[int] = (0,),
) -> list[subprocess.Popen]:
  """Starts the processes of a run.

  Args:
    args: Arguments of `train.py`.
    processes: Number of processes.
    devices: Number of devices of each process.
    own: More arguments for each process; none by default.
    file_bytes: Size above which the system refuses to write a file; None for
      no limit.
    limited: Numbers of the processes that `file_bytes` holds for.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': xla_flags.joined(
      f'--xla_force_host_platform_device_count={devices}', *xla_flags.QUICK
    ),
  }
  if file_bytes is not None:
    # Half an entry of the cache would be of no use to other runs.
    env['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '1e9'
  started = []
  for number in range(processes):
    connect = [
      f'--coordinator_address=localhost:{port}',
      f'--num_processes={processes}',
      f'--process_id={number}',
    ]
    started.append(
      subprocess.Popen(
        [sys.executable, str(ROOT / 'train.py'), *args]
        + connect * (processes > 1)
        + (own[number] if own else []),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
      )
    )
  for number in limited if file_bytes is not None else ():
    limits = (file_bytes, file_bytes)
    resource.prlimit(started[number].pid, resource.RLIMIT_FSIZE, limits)
  return started


def wait_until(
  condition: Callable[[], object], started: list[subprocess.Popen]
) -> None:
  """Waits until a condition holds, while all processes of a run go on."""
  deadline = time.monotonic() + 300
  while not condition():
    assert all(p.poll() is None for p in started), finish(started)
    assert time.monotonic() < deadline
    time.sleep(0.02)


def finish(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
  """Waits for processes; returns the status, output and errors of each."""
  try:
    ended = [process.communicate(timeout=3600) for process in started]
  finally:
    for process in started:
      process.kill()
  return [
    (process.returncode, out, err)
    for process, (out, err) in zip(started, ended, strict=True)
  ]


def run(args: Sequence[str], processes: int = 1, devices: int = 8) -> None:
  """Makes a run, which has to reach its end."""
  for number, (code, out, err) in enumerate(
    finish(start(args, processes, devices))
  ):
    assert code == 0, f'process {number} of {processes}: {err[-3000:]}'
    assert ('next:' in out) == (number == 0), out


def metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Returns the lines of metrics.jsonl without what tells of speed."""
  return [
    {k: v for k, v in line.items() if not k.startswith('perf/')}
    for line in metric_lines.read(workdir)
  ]


def losses(workdir: pathlib.Path) -> list[float]:
  """Returns the loss of each step of a run."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  values = [json.loads(line) for line in lines]
  found = {
    x['step']: x['train/loss_total'] for x in values if 'train/loss_total' in x
  }
  assert list(found) == list(range(1, len(found) + 1))
  return list(found.values())


def assert_same_state(a: pathlib.Path, b: pathlib.Path, step: int) -> None:
  """Requires that all arrays of a step are equal in two runs."""
  found, expected = (_arrays(workdir, step) for workdir in (a, b))
  assert found.keys() == expected.keys()
  for path, array in found.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)


def _arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """Reads every array of a checkpoint by path, without the model."""
  directory = workdir.absolute() / 'checkpoints' / str(step) / 'state'
  checkpointer = ocp.PyTreeCheckpointer()
  restore_args = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
    checkpointer.metadata(directory).item_metadata.tree,
  )
  tree = checkpointer.restore(directory, restore_args=restore_args)
  return checksums.by_path(tree)
