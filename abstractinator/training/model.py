"""From a config to the module it describes."""

import jax.numpy as jnp

from abstractinator.config import RunConfig
from abstractinator.modules.pyramid import AbstractinatorPyramid
from abstractinator.ops.implementation import resolve_implementations


def make_model(config: RunConfig, platform: str) -> AbstractinatorPyramid:
  """The levels of a config, for a platform ('cpu', 'gpu', 'tpu')."""
  return AbstractinatorPyramid(
    config=config.model,
    num_ids=config.data.vocab_size,
    implementation=resolve_implementations(
      **config.model.implementation.to_dict(), platform=platform
    ),
    dtype=jnp.dtype(config.model.dtype),
  )
