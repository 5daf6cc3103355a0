"""Muon: momentum made orthogonal, for the matrices of blocks.

Source: Jordan et al., Muon, 2024; scaled as in Liu et al., Muon is Scalable for
LLM Training, arXiv:2502.16982, so that learning rates are those of AdamW.
"""

import re

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from abstractinator.config import OptimizerConfig
from abstractinator.types import PyTree

# Of each kernel of a block, its input and its output axes; what is neither
# counts separate matrices.
_DIMENSIONS = (
  (r'/qkv/kernel$', MuonDimensionNumbers(0, (2, 3))),
  (r'/[qkv]/kernel$', MuonDimensionNumbers(0, (1, 2))),
  (r'/(query_down|query_up|value_up)/kernel$', MuonDimensionNumbers(1, 2)),
  (r'/out/kernel$', MuonDimensionNumbers((0, 1), 2)),
  (r'/gate_up/kernel$', MuonDimensionNumbers(0, 2)),
  (r'/(kv|down)/kernel$', MuonDimensionNumbers(0, 1)),
)


def dimensions(params: PyTree) -> PyTree:
  """Input and output axes of what Muon moves, None for all else."""

  def of_leaf(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if '/block_' in f'/{name}':
      for pattern, axes in _DIMENSIONS:
        if re.search(pattern, name):
          return axes
    return None

  return jax.tree_util.tree_map_with_path(of_leaf, params)


def muon_labels(params: PyTree) -> PyTree:
  """'muon' or 'adamw', for `optax.partition`."""
  return jax.tree.map(
    lambda axes: 'adamw' if axes is None else 'muon',
    dimensions(params),
    is_leaf=_is_axes,
  )


def make_muon(
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Muon for trees of which only its own parameters are left."""
  return muon(
    schedule,
    beta=config.beta1,
    weight_decay=config.weight_decay,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=dimensions,
  )


def _is_axes(node) -> bool:
  return node is None or isinstance(node, MuonDimensionNumbers)
