import numpy as np
import pytest

from abstractinator.evaluation.reconstruction import align, free_running_counts


def test_ids_stand_beside_those_of_their_own_segment():
  decoded_PL = np.array([[1, 2, 9], [3, 9, 9], [4, 5, 6], [7, 8, 9], [9, 9, 9]])
  beside_S, beyond = align(
    decoded_PL,
    length_P=np.array([2, 1, 3, 2, 0]),
    # The third top slot decodes to nothing.
    origin_P=np.array([0, 0, 1, 3, 0]),
    top_S=np.array([0, 0, 0, 0, 1, 2, 2, 3, 3, -1]),
  )
  assert beside_S.tolist() == [1, 2, 3, -1, 4, -1, -1, 7, 8, -1]
  assert {top: ids.tolist() for top, ids in beyond.items()} == {1: [5, 6]}


@pytest.mark.parametrize('seed', range(5))
def test_it_counts_as_the_metric_does(seed):
  rng = np.random.default_rng(seed)
  num_tops, num_slots, longest = 5, 9, 4
  origin_P = np.sort(rng.integers(0, num_tops, num_slots))
  length_P = rng.integers(0, longest + 1, num_slots)
  top_S = np.pad(
    np.repeat(np.arange(num_tops), rng.integers(1, 6, num_tops)),
    (0, 3),
    constant_values=-1,
  )
  ids_S = rng.integers(0, 2, len(top_S))
  decoded_PL = rng.integers(0, 2, (num_slots, longest))
  right, _ = free_running_counts(
    decoded_PL[None],
    length_P[None],
    origin_P[None],
    ids_S[None],
    top_S[None],
    np.ones((1, num_tops), bool),
  )
  beside_S, beyond = align(decoded_PL, length_P, origin_P, top_S)
  assert np.sum((beside_S == ids_S) & (top_S >= 0)) == right
  assert np.sum(beside_S >= 0) + sum(map(len, beyond.values())) == sum(length_P)
