"""Harness of the fuzz tests: runs cases under limits and judges how they end.

A kind of input is a function at the top of a test file in `tests/fuzz`:

    def case(random, folder):
      path = folder / 'a.npy'
      path.write_bytes(fuzz.mutate(random, CONTENT))
      found = read(str(path))
      assert found == what_is_right

    @pytest.mark.nightly
    def test_arrays(tmp_path):
      counts = fuzz.run(case, 500, tmp_path)
      assert counts['right'] > 50
      assert counts['refused'] > 50

`random` is a numpy generator with the number of the case as its seed. `folder`
is a directory that is empty when a case begins. What is costly to make, such as
a run with a checkpoint, is made by a function under `functools.cache`: one
process runs case after case. `fuzz.run(case, 500, tmp_path, prepare=make)`
calls it before the limits hold.

A case must return, after it has asserted that values are right, or raise one of
`REFUSALS` with a message of one line, which must name `folder` or match the
pattern `names`. `fuzz.run(case, 500, tmp_path, first=SEED)` begins at a number,
so that one case can be repeated.
"""

import collections
import logging
import multiprocessing
import pathlib
import re
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

SECONDS = 10
NUM_BYTES = 1 << 30
REFUSALS = (ValueError, NotImplementedError, OSError)
MAX_MESSAGE = 2000
Case = Callable[[np.random.Generator, pathlib.Path], None]


class _OutOfTimeError(BaseException):
  """Raised in a case that runs past its time; no handler expects it."""


def run(
  case: Case,
  count: int,
  root: pathlib.Path,
  *,
  names: str | None = None,
  first: int = 0,
  prepare: Callable[[], object] | None = None,
) -> collections.Counter[str]:
  """Runs cases of a kind in a process of their own.

  Args:
    case: Function that makes and judges a case; see the top of the file.
    count: Number of cases.
    root: Directory for their files.
    names: Pattern that messages must match; the path of the folder by default.
    first: Number of the first case.
    prepare: Function to call before the cases, without limits.

  Returns:
    How many cases ended with `right` values and how many were `refused`.
  """
  counts: collections.Counter[str] = collections.Counter()
  failures, number = [], first
  while number < first + count:
    number = _run_in_child(
      case, range(number, first + count), root, names, counts, failures, prepare
    )
    if len(failures) >= 10:
      break
  shown = '\n\n'.join(failures)
  assert not failures, f'{case.__module__}.{case.__name__}:\n{shown}'
  return counts


def mutate(random: np.random.Generator, content: bytes) -> bytes:
  """Returns a copy with a few changes of one of several kinds.

  Bits are flipped, bytes set, a stretch is removed, doubled or zeroed, numbers
  become extreme, or the end is cut off.
  """
  data = bytearray(content)
  for _ in range(random.choice([1, 1, 1, 2, 4])):
    at = int(random.integers(len(data) + 1))
    stop = at + int(random.integers(1, 17))
    match random.integers(7):
      case 0 if at < len(data):
        data[at] ^= 1 << int(random.integers(8))
      case 1 if at < len(data):
        data[at] = int(random.integers(256))
      case 2:
        del data[at:stop]
      case 3:
        data[at:at] = data[at:stop]
      case 4:
        data[at:stop] = bytes(len(data[at:stop]))
      case 5:
        extreme = random.choice([b'\xff' * 8, b'\xff' * 7 + b'\x7f', b'9' * 8])
        size = int(random.choice([1, 2, 4, 8]))
        data[at : at + size] = extreme[-size:]
      case 6 if random.integers(4) == 0:
        del data[at:]
  return bytes(data)


def _run_in_child(case, numbers, root, names, counts, failures, prepare) -> int:
  """Runs cases until one ends the process; returns the next number."""
  context = multiprocessing.get_context('spawn')
  ours, theirs = context.Pipe(duplex=False)
  process = context.Process(
    target=_run_all, args=(theirs, case, numbers, root, names, prepare)
  )
  process.start()
  theirs.close()
  number, wait = numbers.start, 240.0  # Time to import and prepare.
  try:
    while True:
      if not ours.poll(wait):
        failures.append(f'case {number}: no answer in {wait} seconds')
        return number + 1
      number, outcome, text = ours.recv()
      # Code that is not Python does not hear the alarm.
      wait = SECONDS + 5.0
      if outcome == 'wrong':
        failures.append(f'case {number}: {text}')
      elif outcome != 'begun':
        counts[outcome] += 1
      if outcome != 'begun' and (
        number == numbers.stop - 1 or len(failures) >= 10
      ):
        return number + 1
  except EOFError:
    process.join()
    failures.append(f'case {number}: ended its process: {process.exitcode}')
    return number + 1
  finally:
    process.kill()
    process.join()


def _run_all(
  answers: Connection, case: Case, numbers: range, root, names, prepare
) -> None:
  """Runs cases one after the other, and tells how each ends."""
  signal.signal(signal.SIGALRM, _raise_out_of_time)
  if prepare is not None:
    prepare()
  # A case may log as it likes.
  logging.disable()
  for number in numbers:
    folder = root / 'case'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    answers.send((number, 'begun', ''))
    answers.send((number, *_outcome(case, number, folder, names)))


def _outcome(case, number, folder, names) -> tuple[str, str]:
  """Returns 'right', 'refused' or 'wrong', and why it is wrong."""
  limit = _num_data_bytes() + NUM_BYTES
  no_limit = resource.RLIM_INFINITY
  resource.setrlimit(resource.RLIMIT_DATA, (limit, no_limit))
  signal.alarm(SECONDS)
  try:
    case(np.random.default_rng(number), folder)
    return 'right', ''
  except BaseException as error:
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_DATA, (no_limit, no_limit))
    reason = _fault(error, names or re.escape(str(folder)))
    if not reason:
      return 'refused', ''
    shown = ''.join(traceback.format_exception(error, limit=-6))
    return 'wrong', f'{reason}\n{shown[-3000:]}'
  finally:
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_DATA, (no_limit, no_limit))


def _fault(error: BaseException, names: str) -> str:
  """Returns why a case must not end with an error; '' if it may."""
  link: BaseException | None = error
  while link is not None:
    # Handlers of any exception would hide that it was tried.
    if isinstance(link, MemoryError):
      return f'asked for over {NUM_BYTES} bytes'
    link = link.__cause__ or link.__context__
  message = str(error)
  if not isinstance(error, REFUSALS):
    return f'is no refusal but {type(error).__name__}'
  if '\n' in message or len(message) > MAX_MESSAGE:
    return 'has a message of more than one line'
  if not re.search(names, message):
    return f'has a message that does not name {names}'
  return ''


def _num_data_bytes() -> int:
  """Memory that counts against the limit, private and writable."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'VmData:\s*(\d+)', status)[1]) << 10


def _raise_out_of_time(number, frame) -> None:
  raise _OutOfTimeError(f'over {SECONDS} seconds')
