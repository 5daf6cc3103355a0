"""What codes decode to next to what was encoded, on the host."""

import numpy as np


def align(
  decoded_PL: np.ndarray,
  length_P: np.ndarray,
  origin_P: np.ndarray,
  top_S: np.ndarray,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
  """Sets what was decoded beside the ids of a row, segment by segment.

  Segments of the top level are compared each on its own, as
  `free_running_counts` does: what is decoded n-th stands beside the n-th id.

  Args:
    decoded_PL: [P, L] int32, ids of each segment of the first level.
    length_P: [P] int32, how many of them hold; 0 in empty slots.
    origin_P: [P] int32, the top slot that each comes from, ascending.
    top_S: [S] int, the top slot of each id, ascending; -1 on padding, which
      comes last.

  Returns:
    [S] int, the id decoded beside each; -1 of none. And for each top slot that
    decodes to more ids than it has, those beyond.
  """
  is_kept_PL = np.arange(decoded_PL.shape[1]) < length_P[:, None]
  ids_N = decoded_PL[is_kept_PL]
  top_N = np.broadcast_to(origin_P[:, None], is_kept_PL.shape)[is_kept_PL]
  number_N = np.arange(len(ids_N)) - np.searchsorted(top_N, top_N)
  real_S = top_S[top_S >= 0]
  begin_N, end_N = (
    np.searchsorted(real_S, top_N, side) for side in ('left', 'right')
  )
  at_N = begin_N + number_N
  is_beside_N = at_N < end_N
  beside_S = np.full(len(top_S), -1)
  beside_S[at_N[is_beside_N]] = ids_N[is_beside_N]
  beyond_N, ids_beyond_N = top_N[~is_beside_N], ids_N[~is_beside_N]
  return beside_S, {
    int(top): ids_beyond_N[beyond_N == top] for top in np.unique(beyond_N)
  }
