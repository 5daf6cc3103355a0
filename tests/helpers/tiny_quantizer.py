"""Quantizers small enough to follow every one of their codes."""

import jax.numpy as jnp
import numpy as np

from abstractinator.config import QuantizerConfig
from abstractinator.model.quantizer_kinds import QUANTIZERS
from configs import default
from tests.helpers.implementations import XLA

ROWS, SLOTS, WIDTH = 4, 5, 8
COUNTS = (5, 3, 0, 2)

_TINY = dict(
  codebook_size=6,
  code_dim=None,
  depth=3,
  levels=(4, 3, 5),
  decay=0.9,
  reset_interval_steps=1,
  reset_after_steps=3,
)

# Settings of each kind, and of each option that changes the computation.
VARIANTS = {
  'vq': {},
  'vq code space': dict(code_dim=4),
  'vq gradient': dict(codebook='gradient'),
  'vq cosine': dict(cosine=True, code_dim=4),
  'vq kmeans': dict(start='kmeans'),
  'vq forbidden': dict(forbidden=(1, 4), protected=(2,)),
  'rvq': dict(kind='rvq'),
  'rvq code space': dict(kind='rvq', code_dim=4, depth=4),
  'rvq gradient': dict(kind='rvq', codebook='gradient', depth=2),
  'rvq cosine': dict(kind='rvq', cosine=True),
  'rvq kmeans': dict(kind='rvq', start='kmeans', code_dim=4),
  'rvq of one stage': dict(kind='rvq', depth=1),
  'fsq': dict(kind='fsq'),
}
WITH_STATE = [
  name for name in VARIANTS if 'gradient' not in name and name != 'fsq'
]


def config(**changes) -> QuantizerConfig:
  """Returns the default quantizer made tiny, with settings replaced."""
  values = default.get_level().quantizer.to_dict()
  return QuantizerConfig.from_dict(values | _TINY | changes)


def model(d_model=WIDTH, **changes):
  """Returns the module of a config."""
  c = config(**changes)
  return QUANTIZERS[c.kind](c, d_model, XLA, jnp.float32)


def inputs(seed=0):
  """Returns vectors [B, P, D], valid slots [B, P] and identities of rows."""
  rng = np.random.default_rng(seed)
  x_BPD = rng.normal(size=(ROWS, SLOTS, WIDTH)).astype(np.float32)
  is_valid_BP = np.arange(SLOTS) < np.array(COUNTS)[:, None]
  return (
    jnp.asarray(x_BPD),
    jnp.asarray(is_valid_BP),
    jnp.array([40, 7, 12, 3], jnp.int32),
  )
