"""The processes of a run: how they find each other, agree, and stop as one."""

import contextlib
import glob
import hashlib
import importlib.util
import os
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

# Why a run cannot start, said in one line.
REFUSALS = (ValueError, NotImplementedError, OSError)

_MAX_BYTES = 4096
# Of PCI.
_GOOGLE = '0x1ae0'
_DISK_OR_NETWORK = ('0x01', '0x02')


class Preempted(Exception):  # noqa: N818
  """The run was asked to stop and has saved where it stands."""


def join(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  environment: Mapping[str, str] = os.environ,
) -> None:
  """Connects the processes of a run; comes before any use of a device.

  Without arguments, the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
  and JAX_PROCESS_ID count. Without those, jax finds out by itself on TPU pods
  and under `srun`; elsewhere the process is alone.

  Args:
    coordinator_address: HOST:PORT of process 0, which any process can reach.
    num_processes: Of the run.
    process_id: Of this one, counted from 0.
    environment: Of the process.

  Raises:
    ValueError: If only a part of it is given, or a number is out of range.
  """
  given = {
    'coordinator_address': coordinator_address,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  for name, value in given.items():
    variable = f'JAX_{name.upper()}'
    text = environment.get(variable)
    if value is not None or text is None:
      continue
    if name != 'coordinator_address' and not text.isdecimal():
      raise ValueError(f'{variable}: got {text!r}, allowed: a number')
    given[name] = text if name == 'coordinator_address' else int(text)
  missing = [name for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise ValueError(
      f'{missing[0]}: got None, allowed: all of --{", --".join(given)}, or none'
    )
  if not missing:
    count, number = given['num_processes'], given['process_id']
    if count < 1:
      raise ValueError(f'num_processes: got {count}, allowed: at least 1')
    if not 0 <= number < count:
      raise ValueError(f'process_id: got {number}, allowed: 0 to {count - 1}')
    if not re.fullmatch(r'.+:\d+', given['coordinator_address']):
      raise ValueError(
        f'coordinator_address: got {given["coordinator_address"]!r}, allowed:'
        ' HOST:PORT of process 0'
      )
    jax.distributed.initialize(**given)
  elif is_cluster(environment):
    jax.distributed.initialize()


def is_cluster(environment: Mapping[str, str], root: str = '/') -> bool:
  """Whether jax can find the other processes of this one by itself.

  Args:
    environment: Of the process.
    root: Of the file system, where devices are looked for.
  """
  if int(environment.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    return True
  # Empty is as good as unset.
  if 'tpu' not in (environment.get('JAX_PLATFORMS') or 'tpu'):
    return False
  if ',' in environment.get('TPU_WORKER_HOSTNAMES', ''):
    return True
  return _has_tpu(root) and importlib.util.find_spec('libtpu') is not None


def _has_tpu(root: str) -> bool:
  """Whether there is a device of Google's that programs may open.

  Nodes alone do not say so: GPUs and others are handed on as VFIO, too; and
  disks and network cards of Google's are in all of its machines.
  """
  nodes = ('dev/accel*', 'dev/vfio/[0-9]*')
  if not any(glob.glob(os.path.join(root, pattern)) for pattern in nodes):
    return False
  for device in glob.glob(os.path.join(root, 'sys/bus/pci/devices/*')):
    vendor, kind = (_read(os.path.join(device, x)) for x in ('vendor', 'class'))
    if vendor == _GOOGLE and not kind.startswith(_DISK_OR_NETWORK):
      return True
  return False


def _read(path: str) -> str:
  """What a file says, nothing if it cannot be read."""
  try:
    with open(path, encoding='utf-8') as f:
      return f.read().strip()
  except OSError:
    return ''


def is_main() -> bool:
  """Whether this process writes what only one may."""
  return jax.process_index() == 0


def agree(text: str) -> str:
  """What the main process has for a text, on all of them."""
  if jax.process_count() == 1:
    return text
  data = text.encode()
  if len(data) > _MAX_BYTES:
    raise ValueError(f'{text[:60]}...: allowed: at most {_MAX_BYTES} bytes')
  padded = np.zeros(_MAX_BYTES, np.uint8)
  padded[: len(data)] = list(data)
  agreed = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
  return agreed.tobytes().rstrip(b'\0').decode()


def require_equal(name: str, text: str) -> None:
  """Raises ValueError, on all processes, if one has another text."""
  if jax.process_count() == 1:
    return
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  digests = multihost_utils.process_allgather(digest)
  for number, other in enumerate(digests):
    if not np.array_equal(other, digests[0]):
      raise ValueError(
        f'{name}: differs between processes 0 and {number}, allowed: the same'
        ' on all'
      )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Raises on all processes if one of them does in the block.

  One of `REFUSALS`. In the block may be nothing for which processes wait for
  each other, unless all of them come to it.
  """
  error = None
  try:
    yield
  except REFUSALS as raised:
    error = raised
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is None and failed.any():
      raise ValueError(
        f'process {int(np.argmax(failed))} cannot start; it says why'
      )
  if error is not None:
    raise error


class Preemption:
  """Hears of SIGTERM, by which schedulers announce that they stop a run.

  Processes agree on a step at which all of them stop: jax hears the signal for
  those that it connects, and this class for one that is alone. A second signal
  ends the process at once.
  """

  def __init__(self):
    self._is_told = False
    self._before = None

  def __enter__(self) -> Self:
    # A handler of ours would take the place of that of jax.
    if not jax.distributed.is_initialized():
      with contextlib.suppress(ValueError):  # not the main thread
        self._before = signal.signal(signal.SIGTERM, self._hear)
    return self

  def __exit__(self, *unused) -> None:
    self._unhook()

  def _hear(self, *unused) -> None:
    self._is_told = True
    self._unhook()

  def _unhook(self) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
      self._before = None

  def reached(self, step: int) -> bool:
    """Whether this is the step to stop at; to be asked after every step."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(step)
    return self._is_told
