"""Processes of a run: how they find each other, agree, and stop together."""

import contextlib
import glob
import hashlib
import importlib.util
import os
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

# Errors that say, in one line, why a run cannot start.
REFUSALS = (ValueError, NotImplementedError, OSError)
# Errors of a disk, of a device, and of the connection to another process.
FAULTS = (OSError, jax.errors.JaxRuntimeError)

_MAX_BYTES = 4096
# PCI vendor number of Google, and PCI classes of disks and network cards.
_GOOGLE = '0x1ae0'
_DISK_OR_NETWORK = ('0x01', '0x02')


class Preempted(Exception):  # noqa: N818
  """Signal that the run was asked to stop and has saved its state."""


def join(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  environment: Mapping[str, str] = os.environ,
) -> None:
  """Connects the processes of a run; must come before any use of a device.

  Arguments that are None are read from the variables JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID. If all are missing there too, jax finds
  the processes by itself on TPU pods and under `srun`; elsewhere the process is
  alone.

  Args:
    coordinator_address: HOST:PORT of process 0, reachable from all processes.
    num_processes: Number of processes of the run.
    process_id: Number of this process, counted from 0.
    environment: Environment variables of this process.

  Raises:
    ValueError: If only some of the three are given, or one is out of range.
  """
  if coordinator_address is None:
    coordinator_address = environment.get('JAX_COORDINATOR_ADDRESS')
  if num_processes is None:
    num_processes = _number('JAX_NUM_PROCESSES', environment)
  if process_id is None:
    process_id = _number('JAX_PROCESS_ID', environment)
  if coordinator_address is None or num_processes is None or process_id is None:
    given = {
      'coordinator_address': coordinator_address,
      'num_processes': num_processes,
      'process_id': process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) < len(given):
      raise ValueError(
        f'{missing[0]}: got None, allowed: all of --{", --".join(given)}, or'
        ' none'
      )
    if is_cluster(environment):
      jax.distributed.initialize()
    return
  if num_processes < 1:
    raise ValueError(f'num_processes: got {num_processes}, allowed: at least 1')
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'process_id: got {process_id}, allowed: 0 to {num_processes - 1}'
    )
  if not re.fullmatch(r'.+:\d+', coordinator_address):
    raise ValueError(
      f'coordinator_address: got {coordinator_address!r}, allowed: HOST:PORT of'
      ' process 0'
    )
  jax.distributed.initialize(
    coordinator_address=coordinator_address,
    num_processes=num_processes,
    process_id=process_id,
  )


def _number(variable: str, environment: Mapping[str, str]) -> int | None:
  text = environment.get(variable)
  if text is not None and not text.isdecimal():
    raise ValueError(f'{variable}: got {text!r}, allowed: a number')
  return None if text is None else int(text)


def is_cluster(environment: Mapping[str, str], root: str = '/') -> bool:
  """Tells whether jax can find the other processes of this run by itself.

  jax itself does not tell: `jax.distributed.initialize` raises an error where a
  process is alone.

  Args:
    environment: Environment variables of the process.
    root: Root directory under which device files are looked for.
  """
  if int(environment.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    return True
  # An empty variable counts as unset.
  if 'tpu' not in (environment.get('JAX_PLATFORMS') or 'tpu'):
    return False
  if ',' in environment.get('TPU_WORKER_HOSTNAMES', ''):
    return True
  return _has_tpu(root) and importlib.util.find_spec('libtpu') is not None


def _has_tpu(root: str) -> bool:
  """Tells whether there is a TPU that programs may open.

  Device files alone do not prove it, because GPUs and other devices are passed
  through as VFIO too. Nor does a PCI device of Google, because all machines of
  Google's cloud have its disks and network cards.
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
  """Returns the content of a file, '' if it cannot be read."""
  try:
    with open(path, encoding='utf-8') as f:
      return f.read().strip()
  except OSError:
    return ''


def require_device() -> None:
  """Makes sure that jax has a device; must come before other uses of one.

  Raises:
    ValueError: If JAX_PLATFORMS names a platform that this machine lacks.
  """
  try:
    jax.devices()
  # jax has no error of its own for this, and fails an assertion for CUDA.
  except (RuntimeError, AssertionError) as error:
    wanted = os.environ.get('JAX_PLATFORMS')
    raise ValueError(
      f'JAX_PLATFORMS: got {wanted!r}, which this machine or the installed jax'
      ' lacks, allowed: cpu, or unset for any that is there; for NVIDIA GPUs'
      " pip install 'abstractinator[cuda13]', for TPUs 'abstractinator[tpu]'"
    ) from error


def is_alone() -> bool:
  """Tells whether this is the only process of the run."""
  return jax.process_count() == 1


def is_main() -> bool:
  """Tells whether this is the process that writes the files of the run."""
  return jax.process_index() == 0


def agree(text: str) -> str:
  """Returns, on all processes, the text that the main process passes."""
  return _gathered(text)[0]


def require_equal(name: str, text: str) -> None:
  """Raises ValueError, on all processes, if their texts differ.

  Args:
    name: Name of the compared setting, for the message.
    text: Text of this process.
  """
  digests = _gathered(hashlib.sha256(text.encode()).hexdigest())
  for number, other in enumerate(digests):
    if other != digests[0]:
      raise ValueError(
        f'{name}: differs between processes 0 and {number}, allowed: the same'
        ' on all'
      )


def _gathered(text: str) -> list[str]:
  """Returns the texts of all processes, at most 4096 bytes each."""
  if jax.process_count() == 1:
    return [text]
  data = text.encode()
  if len(data) > _MAX_BYTES:
    raise ValueError(f'{text[:60]}...: allowed: at most {_MAX_BYTES} bytes')
  padded = np.frombuffer(data.ljust(_MAX_BYTES, b'\0'), np.uint8)
  gathered = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
  return [x.tobytes().rstrip(b'\0').decode() for x in gathered]


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Raises an error on all processes if one raises one of `REFUSALS` inside.

  The block must not wait for other processes, unless all of them reach that
  point even when one fails.
  """
  error = None
  try:
    yield
  except REFUSALS as raised:
    error = raised
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is None and failed.any():
      raise OSError(
        f'process {int(np.argmax(failed))} cannot go on; its output says why'
      )
  if error is not None:
    raise error


class Preemption:
  """Handler of SIGTERM, by which schedulers stop a run, and of Ctrl-C.

  Processes agree on a step at which all of them stop. Where jax connects
  several processes it handles SIGTERM; for a process that is alone, this class
  handles both signals, and says so at once. A second one ends the process.

  Attributes:
    is_told: Whether to stop. Of several processes, all have the same value, and
      it changes in `reached` alone.
  """

  def __init__(self) -> None:
    self.is_told = False
    self._before: dict[int, Any] = {}

  def __enter__(self) -> Self:
    self.is_told = False
    # Another handler would replace the one that jax installs.
    if not jax.distributed.is_initialized():
      with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGTERM, signal.SIGINT):
          before = signal.getsignal(number)
          # Ctrl-C is not for a job in the background, which ignores it. None
          # stands for a handler that Python could not install again.
          if before not in (signal.SIG_IGN, None):
            self._before[number] = signal.signal(number, self._hear)
    return self

  def __exit__(self, *unused: object) -> None:
    self._unhook()

  def _hear(self, number: int, unused: object) -> None:
    self.is_told = True
    # The signal may come while a line is written to the buffered stream.
    line = 'stopping after this step or batch, then saving; again: no waiting'
    os.write(2, f'\n{signal.Signals(number).name}: {line}\n'.encode())
    self._unhook()

  def _unhook(self) -> None:
    while self._before:
      signal.signal(*self._before.popitem())

  def reached(self, step: int) -> bool:
    """Tells whether to stop at this step; must be called after every step."""
    if jax.distributed.is_initialized():
      self.is_told = multihost_utils.reached_preemption_sync_point(step)
    return self.is_told
