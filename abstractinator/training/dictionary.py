"""Filling of a dictionary with the commonest segments of the training text."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from abstractinator.config import RunConfig
from abstractinator.model.pyramid import Pyramid, advance_collections
from abstractinator.ops.dictionary import table_of
from abstractinator.runs.sharding import replicated, shard_batch
from abstractinator.runs.state import TrainState, variables_of
from abstractinator.types import Array, Batch, PyTree

# Most ids of training text that are counted.
SAMPLE_IDS = 1 << 22
# Batches over which the threshold of the segmentation settles before.
_SETTLING_BATCHES = 200


def is_wanted(config: RunConfig) -> bool:
  """Returns whether a new run counts segments: none come from another run."""
  level = config.model.levels[0]
  return (
    level.quantizer.kind == 'dictionary'
    and not level.freeze
    and config.objective == 'all'
  )


def fill(
  state: TrainState, model: Pyramid, mesh: Mesh, sample: Sequence[Batch]
) -> tuple[TrainState, str]:
  """Fills the dictionary of the first level.

  The threshold of the segmentation settles first, so that training goes on with
  the division that was counted.

  Args:
    state: State of step 0.
    model: The model.
    mesh: Mesh of the run.
    sample: Batches of training text, the rows of this process of each.

  Returns:
    The state, and a line about what was counted.
  """
  level = model.config.levels[0]

  @functools.partial(jax.jit, out_shardings=replicated(mesh))
  def divide(variables: PyTree, batch: Batch) -> tuple[Array, Array, PyTree]:
    # Whatever the division does not depend on, the compiler leaves out.
    compressed, after = model.apply(
      variables,
      batch,
      method=lambda pyramid, batch: pyramid.levels[0].compress(batch),
      mutable=['calibration'],
    )
    index_BS = compressed.segments.index_BS
    return batch.ids_BS, index_BS, advance_collections(dict(after))

  variables = variables_of(state)
  counts: collections.Counter[bytes] = collections.Counter()
  with jax.set_mesh(mesh):
    if level.segmentation.target_length is not None:
      for batch in itertools.islice(itertools.cycle(sample), _SETTLING_BATCHES):
        *_, after = divide(variables, shard_batch(batch, mesh))
        # Processes that run ahead of each other would wait for ever.
        variables |= jax.block_until_ready(after)
    for batch in sample:
      ids_BS, index_BS, _ = divide(variables, shard_batch(batch, mesh))
      counts.update(_segments(*jax.device_get((ids_BS, index_BS))))
  # Equally common segments in the order of their bytes, not of the sample.
  common = sorted(counts, key=lambda x: (-counts[x], x))
  common = common[: level.quantizer.codebook_size - 1]
  place = variables['vq']['level_0']['compressor']['quantizer']
  old = place['table']
  new = table_of([np.frombuffer(x, np.int32) for x in common], *old.shape)
  place['table'] = jax.device_put(new, old.sharding)
  variables.pop('params')
  total = counts.total()
  share = sum(counts[x] for x in common) / max(total, 1)
  return dataclasses.replace(state, collections=variables), (
    f'dictionary: {len(common):,} of {len(counts):,} different segments have a'
    f' code, {share:.1%} of the {total:,} that were counted'
  )


def _segments(ids_BS: np.ndarray, index_BS: np.ndarray) -> list[bytes]:
  """Returns the segments of rows, ids of 4 bytes each, in their order."""
  found = []
  for ids_S, index_S in zip(ids_BS, index_BS, strict=True):
    starts = np.flatnonzero(np.diff(index_S, prepend=-1) > 0)
    bounds = 4 * np.append(starts, np.count_nonzero(index_S >= 0))
    data = ids_S.astype(np.int32).tobytes()
    found += [data[a:b] for a, b in itertools.pairwise(bounds.tolist())]
  return found
