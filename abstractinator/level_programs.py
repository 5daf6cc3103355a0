"""What is compiled to take texts to codes and back."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator import codes as codes_lib
from abstractinator import top_lm_losses
from abstractinator.evaluation.coded_rows import coded_level
from abstractinator.evaluation.reconstruction import (
  free_running_counts,
  top_slots,
)
from abstractinator.modules.pyramid_output import DecodedRows
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array, Batch


@functools.partial(jax.jit, static_argnums=0, static_argnames='number')
def compress(model, variables, ids_BS, document_BS, *, number):
  """Rows to the codes of a level.

  Args:
    model: A pyramid.
    variables: Its variables.
    ids_BS: [B, S] int32.
    document_BS: [B, S] int32.
    number: Of the level, counted from 0.

  Returns:
    Segments of the first level, how many the level has, [B] int32, and its
    codes, [B, U] int32.
  """
  output = model.apply(
    variables, _batch(ids_BS, document_BS), method='compress_all'
  )
  return _codes(output, number)


@functools.partial(jax.jit, static_argnums=0)
def predict(model, variables, ids_BS, document_BS):
  """What `compress` gives of the top level, and more.

  Args:
    model: A pyramid.
    variables: Its variables.
    ids_BS: [B, S] int32.
    document_BS: [B, S] int32.

  Returns:
    The same, teacher-forced bytes, [B, S] int32, and the top slot of each byte;
    see `top_slots`.
  """
  output = model.apply(variables, _batch(ids_BS, document_BS))
  predicted_BS = output.levels[0].expanded.best_BS
  return *_codes(output, -1), predicted_BS, top_slots(output)


@functools.partial(jax.jit, static_argnums=0)
def inspect(model, variables, ids_BS, document_BS):
  """All that is known of rows but what their codes decode to.

  Args:
    model: A pyramid.
    variables: Its variables.
    ids_BS: [B, S] int32.
    document_BS: [B, S] int32.

  Returns:
    `CodedLevel` of each level; what the ids of each cost given their codes,
    bits, [B, S] float32 each; how many segments the top level has, [B] int32;
    teacher-forced bytes and `top_slots`, [B, S] int32; and what top codes cost
    under a discrete top LM, bits, [B, U] float32, or None.
  """
  output = model.apply(variables, _batch(ids_BS, document_BS))
  top_lm, top_bits_BU = output.top_lm, None
  if top_lm is not None and top_lm.logits is not None:
    nats_BU = top_lm_losses.code_nats(top_lm, output.top_codes.codes_BP)
    top_bits_BU = BITS_PER_NAT * nats_BU
  return (
    tuple(coded_level(level.compressed) for level in output.levels),
    tuple(BITS_PER_NAT * level.expanded.nats_BS for level in output.levels),
    output.levels[-1].compressed.segments.count_B,
    output.levels[0].expanded.best_BS,
    top_slots(output),
    top_bits_BU,
  )


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=('number', 'sequence_length')
)
def decode(model, variables, codes_BU, is_valid_BP, *, number, sequence_length):
  """Codes of a level to bytes; see `AbstractinatorPyramid.decode_all`."""
  # A row is one document: its segments may look back to the first.
  lowest_BP = jnp.zeros(is_valid_BP.shape, jnp.int32)
  return model.apply(
    variables,
    codes_BU,
    is_valid_BP,
    lowest_BP,
    sequence_length=sequence_length,
    number=number,
    method='decode_all',
  )


@functools.partial(jax.jit, static_argnums=0)
def count_right(model, variables, *rows):
  """`free_running_counts` of each row, [B] float32 twice."""
  del model, variables
  of_row = jax.tree.map(lambda x_BX: x_BX[:, None], rows)
  return jax.vmap(free_running_counts)(*of_row)


def texts(decoded: DecodedRows, num_rows_T: Sequence[int]) -> list[bytes]:
  """The bytes of texts of so many rows each."""
  ids_BPL, length_BP = decoded.ids_BPL, decoded.length_BP
  is_valid_BP = decoded.rows.is_valid_BP
  ends_T = np.cumsum(num_rows_T)
  return [
    codes_lib.text(
      *(x[end - n : end] for x in (ids_BPL, length_BP, is_valid_BP))
    )
    for n, end in zip(num_rows_T, ends_T, strict=True)
  ]


def _codes(output, number):
  level = output.levels[number].compressed
  segments = output.levels[0].compressed.segments
  return segments, level.segments.count_B, level.quantized.codes_BP


def _batch(ids_BS: Array, document_BS: Array) -> Batch:
  # Only training asks which row is which.
  row_B = jnp.zeros((ids_BS.shape[0],), jnp.int32)
  return Batch(ids_BS=ids_BS, document_BS=document_BS, row_B=row_B)
