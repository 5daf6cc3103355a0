"""The fuzz harness notices what it is there to notice."""

import os
import time

import numpy as np
import pytest

from tests.helpers import fuzz


def _refuse(random, folder):
  if random.integers(2):
    raise ValueError(f'{folder}/x: is wrong')


def _allocate(random, folder):
  np.zeros(fuzz.NUM_BYTES + (1 << 20), np.uint8)


def _hide_allocation(random, folder):
  try:
    _allocate(random, folder)
  except MemoryError:
    raise ValueError(f'{folder}: is damaged') from None


def _two_lines(random, folder):
  raise ValueError(f'{folder}\n')


def _no_name(random, folder):
  raise ValueError('is wrong')


def _end(random, folder):
  os._exit(3)


def _bug(random, folder):
  raise KeyError(str(folder))


def _wait(random, folder):
  time.sleep(60)


def test_values_and_refusals_are_counted(tmp_path):
  counts = fuzz.run(_refuse, 40, tmp_path)
  assert counts.total() == 40
  assert min(counts['right'], counts['refused']) > 5
  assert fuzz.run(_no_name, 3, tmp_path, names='wrong') == {'refused': 3}


@pytest.mark.nightly
@pytest.mark.parametrize(
  ('case', 'reason'),
  [
    (_allocate, 'asked for over'),
    (_hide_allocation, 'asked for over'),
    (_two_lines, 'more than one line'),
    (_no_name, 'does not name'),
    (_end, 'ended its process: 3'),
    (_bug, 'is no refusal'),
    (_wait, 'over 10 seconds'),
  ],
)
def test_wrong_ends_are_noticed(case, reason, tmp_path):
  with pytest.raises(AssertionError, match=reason):
    fuzz.run(case, 1, tmp_path)
