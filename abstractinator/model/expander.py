"""Expander of a level: codes back to ids, autoregressively."""

import math

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from abstractinator.config import LevelConfig
from abstractinator.model import layers, transformer
from abstractinator.model.attention import CodeKeyValues
from abstractinator.model.entropy_model import Prior
from abstractinator.model.transformer import CodeMemory, StepCodes
from abstractinator.model.vocabulary import Codebooks, Vocabulary
from abstractinator.ops.cache import Cache
from abstractinator.ops.dictionary import Spelling
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.segmentation import document_starts, first_slots
from abstractinator.ops.shards import by_rows
from abstractinator.types import Array, Segments, Special


@flax.struct.dataclass
class ExpanderOutput:
  """Teacher-forced predictions of ids and of the ends of segments.

  Attributes:
    logits: Logits of each digit of each id, given the codes it sees and the ids
      before it in its context, M arrays [B, S, V] float32; see `Vocabulary`.
    nats_BS: -log p of each id, [B, S] float32.
    best_BS: Id of the best digits, each given the true ones before it, [B, S]
      int32.
    end_logits_BS: Log-odds that the id is the last of its segment, given the
      same and the id itself, [B, S] float32; None if the entropy model decides
      where segments end.
    end_is_certain_BS: True for ids of which it is certain whether they are the
      last: EOS, and the `max_length`-th id of a segment, [B, S] bool.
  """

  logits: tuple[Array, ...]
  nats_BS: Array
  best_BS: Array
  end_logits_BS: Array | None
  end_is_certain_BS: Array


class DecoderOnlyExpanderRVQ(nn.Module):
  """Decoder-only transformer that predicts the ids of segments from codes.

  Id s is fed the id before it and attends to the codes of its own segment, the
  first id of a segment included, and of `lookback` segments before. With
  `ends='head'` a head on the state and the id itself predicts whether the
  segment ends there.

  With `context='segment'` an id sees the ids of its own segment only, and a
  segment starts from BOS. With 'window' it sees the last `window` ids of its
  document, with 'full' all of them.

  With `base='entropy_model'` it builds on the entropy model, which knows the
  ids before but not the code: the state that predicts an id is added to the
  input at that id, and its logits are those of the entropy model plus a learned
  difference, which starts small. So ids given codes first cost what the entropy
  model charges, to about 0.01 bits, and the expander only learns what codes say
  beyond it. A difference that starts at exactly 0 has no gradient to the codes
  in the first steps: it learned half as fast, or the codes became one.

  Attributes:
    config: Sizes and settings of the level.
    sizes: Number of values of each digit of an ordinary id, M of them; the
      special ids follow the ordinary ones.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.
    has_tables: Whether the tables of the vocabulary are parameters; otherwise
      every call takes them as `codebooks`.
    has_eos: Whether documents end with EOS, an id of its own.

  Parameters:
    vocabulary: Parameters of a `Vocabulary`.
    offset_embed/embedding: Embeddings of the position of an id in its segment,
      [L, D].
    block_0 and so on: Parameters of each `TransformerBlock`.
    norm/scale: [D].
    condition/kernel: Map from the states of the top LM to codes, [Y, D], which
      starts at 0; with `conditioning='top_lm'` only.
    prior/kernel: Map from the states of the entropy model to the input, [D, D];
      with `base='entropy_model'` only.
    end_hidden/kernel: [2 D, D], and end_head/kernel: [D, 1]; with `ends='head'`
      only.
  """

  config: LevelConfig
  sizes: tuple[int, ...]
  implementation: Implementations
  dtype: jnp.dtype
  has_tables: bool = True
  has_eos: bool = True

  @property
  def num_ids(self) -> int:
    """Number of ordinary ids; the special ids follow them."""
    return math.prod(self.sizes)

  @property
  def is_alone(self) -> bool:
    """True if ids see no ids of other segments."""
    return self.config.expander.context == 'segment'

  @property
  def has_prior(self) -> bool:
    """True if calls are given the predictions of the entropy model."""
    return self.config.expander.base == 'entropy_model'

  @property
  def window(self) -> int | None:
    """Number of ids before itself that an id may see; None for all."""
    return {
      'segment': self.config.segmentation.max_length - 1,
      'window': self.config.expander.window,
      'full': None,
    }[self.config.expander.context]

  def setup(self) -> None:
    c, width = self.config.expander, self.config.d_model
    self.vocabulary = Vocabulary(
      self.sizes,
      width,
      c.code_dim,
      c.distance,
      c.residual_conditioning,
      self.dtype,
      has_tables=self.has_tables,
      has_eos=self.has_eos,
    )
    if self.has_prior:
      self.prior = nn.Dense(width, use_bias=False, dtype=self.dtype)
    self.offset_embed = layers.embed(
      self.config.segmentation.max_length, width, self.dtype
    )
    self.blocks = transformer.make_blocks(
      c,
      width,
      self.window,
      self.implementation,
      self.dtype,
      has_cross=True,
      lookback=c.lookback,
      rows_per_slot=self.config.pooling.num_queries,
    )
    self.norm = layers.RMSNorm(self.dtype)
    if c.conditioning == 'top_lm':
      self.condition = nn.Dense(
        width,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=nn.initializers.zeros,
      )
    if c.ends == 'head':
      self.end_hidden = nn.Dense(width, use_bias=False, dtype=self.dtype)
      self.end_head = layers.logits(1, self.dtype)

  def __call__(
    self,
    ids_BS: Array,
    document_BS: Array,
    segments: Segments,
    memory_BUD: Array,
    hidden_BS: Array | None = None,
    codebooks: Codebooks | None = None,
    prior: Prior | None = None,
    spelling: Spelling | None = None,
  ) -> ExpanderOutput:
    """Predicts the ids of rows, teacher-forced.

    Args:
      ids_BS: Ids to predict, [B, S] int32.
      document_BS: Document of each id, [B, S] int32; -1 on padding.
      segments: Division of the rows into segments.
      memory_BUD: Vectors of the codes, [B, U, D].
      hidden_BS: True for ids that are fed PAD in place of the id before, unless
        that is BOS, [B, S] bool; None for no ids.
      codebooks: Codebooks of the level below, if ids are its codes.
      prior: Predictions of the ids by the entropy model, [B, S], with
        `has_prior`.
      spelling: Ids and ends that follow from the codes alone, [B, S], and so
        cost nothing; None for none.

    Returns:
      The predictions.
    """
    inputs = self._inputs(
      ids_BS, document_BS, segments, memory_BUD, hidden_BS, codebooks, prior
    )
    x_BSD = self.norm(transformer.run_blocks(self.blocks, *inputs)[0])
    base_BSV = prior.logits if prior is not None else None
    predicted = self.vocabulary.predict(x_BSD, ids_BS, codebooks, base_BSV)
    predicted = predicted.told(spelling)
    end_logits_BS = None
    if self.config.expander.ends == 'head':
      end_logits_BS = self.end_logits(x_BSD, ids_BS, codebooks, spelling)
    return ExpanderOutput(
      logits=predicted.logits,
      nats_BS=self.vocabulary.nats(predicted, ids_BS),
      best_BS=predicted.best,
      end_logits_BS=end_logits_BS,
      end_is_certain_BS=self.end_is_certain(ids_BS, segments.offset_BS),
    )

  def prefill(
    self,
    ids_BS: Array,
    document_BS: Array,
    segments: Segments,
    memory_BUD: Array,
    cache: Cache,
    codebooks: Codebooks | None = None,
    prior: Prior | None = None,
  ) -> tuple[Array, Cache]:
    """Computes the states of whole rows, and stores them in a cache for `step`.

    The first `step` after it is fed a row's last id.

    Args:
      ids_BS: Ids, [B, S] int32.
      document_BS: Document of each id, [B, S] int32; -1 on padding, which only
        ends a row.
      segments: Division of the rows into segments.
      memory_BUD: Vectors of the codes, [B, U, D].
      cache: Cache from `init_cache`; its content is replaced.
      codebooks: Codebooks of the level below, if ids are its codes.
      prior: Predictions of the ids by the entropy model, [B, S].

    Returns:
      Normalised states from which the ids are predicted, [B, S, D], and the
      cache.

    Raises:
      ValueError: With context 'full' if rows are longer than the cache.
    """
    x_BSD, group_BS, memory = self._inputs(
      ids_BS, document_BS, segments, memory_BUD, None, codebooks, prior
    )
    x_BSD, cache = transformer.prefill_blocks(
      self.blocks, x_BSD, group_BS, cache, memory
    )
    return self.norm(x_BSD), cache

  @nn.nowrap
  def init_cache(self, batch_size: int, capacity: int) -> Cache:
    """Builds an empty cache for `prefill` and `step`; needs no parameters.

    Args:
      batch_size: Number of rows, B.
      capacity: Most ids that a row may come to, with context 'full'.

    Returns:
      The cache.
    """
    return transformer.empty_cache(
      self.config.expander,
      self.config.d_model,
      self.window,
      batch_size,
      capacity,
      self.dtype,
    )

  def memory(self, vectors_BUD: Array, states_BUY: Array | None) -> Array:
    """Returns what ids attend to: codes and the states that predicted them.

    Args:
      vectors_BUD: Vectors of the codes, [B, U, D].
      states_BUY: States from which the top LM predicts them, [B, U, Y]; only
        read with `conditioning='top_lm'`.

    Returns:
      [B, U, D].

    Raises:
      ValueError: If states are needed and not given.
    """
    if self.config.expander.conditioning == 'none':
      return vectors_BUD
    if states_BUY is None:
      raise ValueError(
        "expander.conditioning: got 'top_lm' without a top LM, allowed: 'none'"
      )
    return vectors_BUD + self.condition(states_BUY)

  def remember(self, memory_BUD: Array) -> list[CodeKeyValues]:
    """Computes what `step` reads of codes, [B, U, D], for each block."""
    return [block.remember(memory_BUD) for block in self.blocks]

  def step(
    self,
    fed_B: Array,
    offset_B: Array,
    group_B: Array,
    cache: Cache,
    active_B: Array,
    codes: StepCodes,
    codebooks: Codebooks | None = None,
    prior: Prior | None = None,
  ) -> tuple[Array, Cache]:
    """Computes the state from which the next id of each row is predicted.

    Args:
      fed_B: The id before the next one, or BOS, [B] int32.
      offset_B: Position of the next id in its segment, [B] int32.
      group_B: Segment of the next id with context 'segment', else its document,
        [B] int32.
      cache: Cache from `init_cache`, `prefill` or the step before.
      active_B: True for rows that have a next id, [B] bool.
      codes: Keys and values from `remember`, and the segments that ids see.
      codebooks: Codebooks of the level below, if ids are its codes.
      prior: Predictions of the next ids by the entropy model, [B].

    Returns:
      Normalised states, [B, D], NaN beyond the capacity of the cache with
      context 'full', and the cache.
    """
    x_BD = self.vocabulary.embed(fed_B, codebooks) + self.offset_embed(offset_B)
    if prior is not None:
      x_BD += self.prior(prior.states)
    x_BD, cache = transformer.step_blocks(
      self.blocks, x_BD, group_B, cache, active_B, codes
    )
    return self.norm(x_BD), cache

  def end_logits(
    self,
    x: Array,
    ids: Array,
    codebooks: Codebooks | None = None,
    spelling: Spelling | None = None,
  ) -> Array:
    """Computes the log-odds that ids end their segments.

    Args:
      x: Normalised states that the ids are predicted from, [..., D].
      ids: The ids, [...] int32.
      codebooks: Codebooks of the level below, if ids are its codes.
      spelling: Ids and ends that follow from the codes alone, [...]; None for
        none.

    Returns:
      [...] float32.
    """
    both = jnp.concatenate([x, self.vocabulary.embed(ids, codebooks)], axis=-1)
    hidden = nn.silu(self.end_hidden(by_rows(both)))
    logits = self.end_head(hidden)[..., 0].astype(jnp.float32)
    return logits if spelling is None else spelling.end_logits(logits)

  def end_is_certain(self, ids: Array, offset: Array) -> Array:
    """Returns True for ids that always end their segments, [...] bool."""
    max_length = self.config.segmentation.max_length
    return (ids == self.num_ids + Special.EOS) | (offset == max_length - 1)

  def _inputs(
    self,
    ids_BS: Array,
    document_BS: Array,
    segments: Segments,
    memory_BUD: Array,
    hidden_BS: Array | None,
    codebooks: Codebooks | None,
    prior: Prior | None,
  ) -> tuple[Array, Array, CodeMemory]:
    """Returns the arguments of `run_blocks`: vectors, groups and codes."""
    lowest_BS = first_slots(segments, document_BS)
    is_start_BS, group_BS = document_starts(document_BS), document_BS
    if self.is_alone:
      is_start_BS, group_BS = segments.is_start_BS, segments.index_BS
    fed_BS = layers.shift_right(ids_BS, is_start_BS, self.num_ids + Special.BOS)
    if hidden_BS is not None:
      fed_BS = jnp.where(
        hidden_BS & ~is_start_BS, self.num_ids + Special.PAD, fed_BS
      )
    x_BSD = self.vocabulary.embed(fed_BS, codebooks)
    x_BSD += self.offset_embed(segments.offset_BS)
    if prior is not None:
      x_BSD += self.prior(prior.states)
    return x_BSD, group_BS, CodeMemory(memory_BUD, segments.index_BS, lowest_BS)
