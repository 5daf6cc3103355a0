"""What a prediction costs once the truth is known."""

import jax
import jax.numpy as jnp

from abstractinator.types import Array


def cross_entropy(logits: Array, ids: Array) -> Array:
  """-log softmax(logits)[ids], [...] float32 nats, from [..., V] logits."""
  chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - chosen
