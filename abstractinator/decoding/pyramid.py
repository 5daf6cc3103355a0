"""A pyramid that also turns codes back into bytes and continues prompts."""

import dataclasses

import jax.numpy as jnp

from abstractinator.config import RunConfig
from abstractinator.decoding import generate, stream
from abstractinator.decoding.expansion import is_parallel
from abstractinator.decoding.lanes import decode_distinct
from abstractinator.decoding.loop import while_loop
from abstractinator.decoding.prompt import codebooks_below
from abstractinator.decoding.rows import decode_greedily
from abstractinator.decoding.segments import SegmentCodes
from abstractinator.decoding.state import GenerationState, Request
from abstractinator.model.level import Abstractinator
from abstractinator.model.pyramid import DecodedRows, Pyramid
from abstractinator.model.vocabulary import Codebooks
from abstractinator.ops import code_rows
from abstractinator.ops.implementation import resolve_implementations
from abstractinator.types import Array


class AbstractinatorPyramid(Pyramid):
  """Stacked levels and an optional top LM, with both directions.

  `Pyramid` computes codes and teacher-forced predictions; this class adds
  decoding. It has the same attributes and parameters.
  """

  def decode_all(
    self,
    codes_BU: Array,
    is_valid_BP: Array,
    lowest_BP: Array,
    sequence_length: int,
    number: int | None = None,
  ) -> DecodedRows:
    """Decodes codes to bytes, greedily, level by level.

    Each level decodes as `decode_level` says; its ids are the codes of the
    level below. Where top codes are a stream (see `decoding.stream`), the top
    LM and the encoder run over what is decoded.

    Args:
      codes_BU: Codes of one level, [B, U] int32.
      is_valid_BP: Slots with a segment, the first ones of a row, [B, P] bool.
      lowest_BP: First slot of the document of each slot, [B, P] int32.
      sequence_length: S, the most ids a row of the first level can have.
      number: Number of the level of the codes, counted from 0; the top level
        by default.

    Returns:
      The bytes of the segments of the first level.
    """
    rows = code_rows.top_rows(codes_BU, is_valid_BP, lowest_BP)
    sizes = self.config.sequence_lengths(sequence_length)
    top = len(self.levels) - 1 if number is None else number
    for above in range(top, 0, -1):
      decoded = self._decode(above, rows, sizes[above])
      queries = self.config.levels[above - 1].pooling.num_queries
      rows = code_rows.unfold(
        rows,
        *decoded,
        num_slots=sizes[above] // queries,
        num_queries=queries,
      )
    return DecodedRows(*self._decode(0, rows, sizes[0]), rows)

  def _decode(
    self, number: int, rows: code_rows.CodeRows, sequence_length: int
  ) -> tuple[Array, Array]:
    if number == len(self.levels) - 1:
      return self.decode_top(rows, sequence_length)
    codebooks = codebooks_below(self, number)
    return decode_level(self.levels[number], rows, sequence_length, codebooks)

  def decode_top(
    self, rows: code_rows.CodeRows, sequence_length: int
  ) -> tuple[Array, Array]:
    """Decodes the codes of the top level, which may be a stream.

    `decode_level` has the arguments and the result.
    """
    number = len(self.levels) - 1
    codebooks = codebooks_below(self, number)
    if not self.config.streams:
      level = self.levels[number]
      return decode_level(level, rows, sequence_length, codebooks)
    codes_BP, slots = rows.codes_BU, rows.codes_BU.shape[1]

    def choose(
      _: Pyramid, opened: stream.StreamState, slot_B: Array
    ) -> tuple[Array, Array]:
      at_B1 = jnp.clip(slot_B, 0, slots - 1)[:, None]
      codes_B = jnp.take_along_axis(codes_BP, at_B1, axis=1)[:, 0]
      return codes_B, jnp.zeros(slot_B.shape, bool)

    return decode_greedily(
      self,
      stream.StreamCodes(choose, rows.lowest_BP),
      rows.is_valid_BP,
      sequence_length,
      codebooks,
      stream.empty(self, len(codes_BP), sequence_length),
    )

  def generate_bytes(
    self,
    ids_BS: Array,
    count_B: Array,
    request: Request,
    *,
    max_new_bytes: int,
  ) -> tuple[Array, Array]:
    """Continues prompts: prompts to codes, more codes, and those to bytes.

    `decoding.continue_texts` does the same in parts, as bytes are wanted.

    Args:
      ids_BS: Bytes of the prompts, [B, S] int32; each row is the beginning of a
        document.
      count_B: Bytes of each prompt, 0 to S, [B] int32.
      request: Sampling settings and limits; a limit above `max_new_bytes` is
        lowered to it.
      max_new_bytes: N, the most new bytes of a row.

    Returns:
      New bytes, [B, N] int32, 0 past their number, and that, [B] int32.
    """
    batch, size = ids_BS.shape
    limit_B = jnp.minimum(request.limit_B, max_new_bytes)
    state = generate.start(
      self,
      ids_BS,
      count_B,
      dataclasses.replace(request, limit_B=limit_B),
      capacity=size + max_new_bytes,
    )

    def one_call(
      pyramid: Pyramid, carry: tuple[Array, GenerationState]
    ) -> tuple[Array, GenerationState]:
      bytes_BN, before = carry
      new_BN, _, after = generate.extend(
        pyramid, before, jnp.zeros((batch,), bool)
      )
      # What follows the new bytes is overwritten by the next call.
      at_BN = before.num_bytes_B[:, None] + jnp.arange(new_BN.shape[1])
      row_B1 = jnp.arange(batch)[:, None]
      return bytes_BN.at[row_B1, at_BN].set(new_BN, mode='drop'), after

    bytes_BN, state = while_loop(
      lambda carry: ~jnp.all(carry[1].is_done_B),
      one_call,
      self,
      (jnp.zeros((batch, max_new_bytes), jnp.int32), state),
    )
    num_new_B = jnp.minimum(state.num_bytes_B, limit_B)
    is_new_BN = jnp.arange(max_new_bytes) < num_new_B[:, None]
    return jnp.where(is_new_BN, bytes_BN, 0), num_new_B


def decode_level(
  level: Abstractinator,
  rows: code_rows.CodeRows,
  sequence_length: int,
  codebooks: Codebooks | None = None,
) -> tuple[Array, Array]:
  """Decodes the codes of one level to its ids, greedily.

  With `expander.context='segment'` and `expander.ends='head'` all segments
  decode in parallel (`decoding.lanes`), else ids follow one another in up to S
  steps (`decoding.rows`).

  Args:
    level: A bound level.
    rows: Codes of the level, by slot.
    sequence_length: S, the most ids a row can have.
    codebooks: Codebooks of the level below; None over bytes.

  Returns:
    Ids [B, P, L] int32 and lengths [B, P] int32 of the segments: 0 in empty
    slots and after S ids; ids past a segment's length are meaningless.
  """
  if is_parallel(level):
    return decode_distinct(
      level, rows.codes_BU, rows.is_valid_BP, rows.lowest_BP, codebooks
    )
  codes = SegmentCodes.of(level, rows.codes_BU, rows.lowest_BP)
  return decode_greedily(
    level, codes, rows.is_valid_BP, sequence_length, codebooks
  )


def make_model(config: RunConfig, platform: str) -> AbstractinatorPyramid:
  """Builds the pyramid of a config for a platform ('cpu', 'gpu', 'tpu')."""
  return AbstractinatorPyramid(
    config=config.model,
    num_ids=config.data.vocab_size,
    implementation=resolve_implementations(
      config.model.implementation, platform
    ),
    dtype=jnp.dtype(config.model.dtype),
  )
