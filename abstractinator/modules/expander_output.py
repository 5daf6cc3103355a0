"""What an expander says of the ids of segments."""

import flax.struct

from abstractinator.types import Array


@flax.struct.dataclass
class ExpanderOutput:
  """Teacher-forced predictions.

  Attributes:
    logits: M arrays [B, S, V] float32, one a digit, of each id given the codes
      it sees and the ids before it in its context; see `Vocabulary`.
    nats_BS: [B, S] float32, -log p of each id.
    best_BS: [B, S] int32, id of the best digits, each given the true ones
      before it.
    end_logits_BS: [B, S] float32, log-odds that the id is its segment's last,
      given the same and the id itself; None where the entropy model says it.
    end_is_certain_BS: [B, S] bool, ids whose being last or not goes without
      saying: EOS, and the `max_length`-th of a segment.
  """

  logits: tuple[Array, ...]
  nats_BS: Array
  best_BS: Array
  end_logits_BS: Array | None
  end_is_certain_BS: Array
