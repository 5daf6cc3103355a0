"""What an entropy model says of the next id, and how sure it is."""

import flax.struct

from abstractinator.config import EntropyHeadsConfig
from abstractinator.ops import gaussian, sampling
from abstractinator.ops.gaussian import Mixture
from abstractinator.types import Array


@flax.struct.dataclass
class EntropyOutput:
  """Predictions of ids, each from those before it in its document.

  Attributes:
    logits: [..., V] float32; where ids are codes, of their first digit.
    mixture: Of the id's embedding; None without a Gaussian head.
    further_logits: M - 1 arrays [..., K] float32, of each further digit of a
      code, given the best digits before it. None of bytes.
    states: [..., D], what it was made from, where ids are codes: it says what
      the digits of a code cost given the true ones, see `EntropyModel.nats`.
  """

  logits: Array
  mixture: Mixture | None
  further_logits: tuple[Array, ...] = ()
  states: Array | None = None


def predictive_entropy_bits(
  output: EntropyOutput, heads: EntropyHeadsConfig
) -> Array:
  """How uncertain predictions are: what cuts segments.

  Args:
    output: Predictions of any shape.
    heads: Which head is asked, and how its distribution is filtered.

  Returns:
    [...] float32. Of the logits: bits, finite under every filter; of codes of
    several digits the sum over digits, each given the most likely ones before
    it, which is the entropy of the code where digits do not depend on each
    other, and its value along the most likely path where they do. Of the
    Gaussian head: bits per dimension, see `ops.gaussian.entropy_bits`.
  """
  if heads.source == 'gaussian':
    return gaussian.entropy_bits(output.mixture, heads.temperature)
  return sum(
    sampling.entropy_bits(_filtered(logits, heads))
    for logits in (output.logits, *output.further_logits)
  )


def sample_next(
  key: Array, output: EntropyOutput, heads: EntropyHeadsConfig
) -> Array:
  """Draws what comes next from the head that `heads.source` names.

  Args:
    key: Of jax.random.
    output: Predictions of any shape.
    heads: Which head is asked, and how its distribution is filtered.

  Returns:
    Of the logits [...] int32, ids; of the Gaussian head [..., D] float32,
    embeddings of ids.
  """
  if heads.source == 'gaussian':
    return gaussian.sample(key, output.mixture, heads.temperature)
  return sampling.sample(key, _filtered(output.logits, heads))


def _filtered(logits: Array, heads: EntropyHeadsConfig) -> Array:
  return sampling.filter_logits(
    logits, temperature=heads.temperature, top_k=heads.top_k, top_p=heads.top_p
  )
