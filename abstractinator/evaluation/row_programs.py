"""Compiled programs that take rows of a trained pyramid to codes and back."""

import functools
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.codes import codes as codes_lib
from abstractinator.decoding.pyramid import AbstractinatorPyramid
from abstractinator.evaluation.coded_rows import CodedLevel, coded_levels
from abstractinator.model.pyramid import (
  DecodedRows,
  PyramidCodes,
  PyramidOutput,
)
from abstractinator.objective import losses
from abstractinator.ops.sampling import BITS_PER_NAT
from abstractinator.types import Array, Batch, PyTree


@functools.partial(jax.jit, static_argnums=0)
def segment_rows(
  model: AbstractinatorPyramid,
  variables: PyTree,
  ids_BS: Array,
  document_BS: Array,
) -> Array:
  """Returns which ids open a segment of the first level, [B, S] bool."""
  codes = cast(
    PyramidCodes,
    model.apply(variables, _batch(ids_BS, document_BS), method='compress_all'),
  )
  return codes.levels[0].segments.is_start_BS


@functools.partial(jax.jit, static_argnums=0, static_argnames='number')
def encode_rows(
  model: AbstractinatorPyramid,
  variables: PyTree,
  ids_BS: Array,
  document_BS: Array,
  *,
  number: int,
) -> tuple[Array, Array, Array]:
  """Computes the codes of a level, and nothing that a text need not keep.

  Returns:
    Number of segments of each row, [B] int32; codes of their slots, [B, U]
    int32; and whether the first level ran short of slots, [B] bool.
  """
  codes = model.apply(
    variables, _batch(ids_BS, document_BS), method='compress_all'
  )
  return _codes(cast(PyramidCodes, codes), number)


@functools.partial(jax.jit, static_argnums=0)
def predict_rows(
  model: AbstractinatorPyramid,
  variables: PyTree,
  ids_BS: Array,
  document_BS: Array,
) -> tuple[Array, Array, Array, Array, Array, Array]:
  """Computes what a reconstruction compares.

  Returns:
    `encode_rows` of the top level; segments of the first level, [B] int32; and
    predicted bytes and top slots, [B, S] int32.
  """
  output = cast(
    PyramidOutput, model.apply(variables, _batch(ids_BS, document_BS))
  )
  return (
    *_codes(output.codes, -1),
    output.codes.levels[0].segments.count_B,
    output.levels[0].expanded.best_BS,
    coded_levels(output.codes)[-1].byte_slot_BS,
  )


@functools.partial(jax.jit, static_argnums=0)
def inspect_rows(
  model: AbstractinatorPyramid,
  variables: PyTree,
  ids_BS: Array,
  document_BS: Array,
) -> tuple[
  tuple[CodedLevel, ...], tuple[Array, ...], Array, Array, Array, Array | None
]:
  """Computes everything about rows but what their codes decode to.

  Returns:
    The coded levels; bits of the ids of each level given their codes, [B, S];
    segments of the top level, [B] int32; teacher-forced bytes and top slots,
    [B, S] int32; bits of top codes under a discrete top LM, [B, U], or None.
  """
  output = cast(
    PyramidOutput, model.apply(variables, _batch(ids_BS, document_BS))
  )
  top_lm, top_bits_BU = output.top_lm, None
  if top_lm is not None and top_lm.logits is not None:
    nats_BU = losses.code_nats(top_lm, output.top_codes.codes_BP)
    top_bits_BU = BITS_PER_NAT * nats_BU
  levels = coded_levels(output.codes)
  return (
    levels,
    tuple(BITS_PER_NAT * level.expanded.nats_BS for level in output.levels),
    output.levels[-1].compressed.segments.count_B,
    output.levels[0].expanded.best_BS,
    levels[-1].byte_slot_BS,
    top_bits_BU,
  )


@functools.partial(
  jax.jit, static_argnums=0, static_argnames=('number', 'sequence_length')
)
def decode_codes(
  model: AbstractinatorPyramid,
  variables: PyTree,
  codes_BU: Array,
  is_valid_BP: Array,
  *,
  number: int,
  sequence_length: int,
) -> DecodedRows:
  """Decodes codes of a level to bytes by `AbstractinatorPyramid.decode_all`."""
  # A row is one document: its segments may look back to the first.
  lowest_BP = jnp.zeros(is_valid_BP.shape, jnp.int32)
  decoded = model.apply(
    variables,
    codes_BU,
    is_valid_BP,
    lowest_BP,
    sequence_length=sequence_length,
    number=number,
    method='decode_all',
  )
  return cast(DecodedRows, decoded)


def _codes(codes: PyramidCodes, number: int) -> tuple[Array, Array, Array]:
  level = codes.levels[number]
  is_short_B = jnp.any(codes.levels[0].segments.is_capacity_bound_BS, axis=1)
  return level.segments.count_B, level.quantized.codes_BP, is_short_B


def _batch(ids_BS: Array, document_BS: Array) -> Batch:
  # Row numbers seed choices of training only.
  row_B = jnp.zeros((ids_BS.shape[0],), jnp.int32)
  return Batch(ids_BS=ids_BS, document_BS=document_BS, row_B=row_B)


def texts_of(decoded: DecodedRows, num_rows_T: Sequence[int]) -> list[bytes]:
  """Joins the decoded rows of each text."""
  rows = jax.device_get(
    (decoded.ids_BPL, decoded.length_BP, decoded.rows.is_valid_BP)
  )
  ends_T = np.cumsum(num_rows_T)
  return [
    codes_lib.text(*(x[end - count : end] for x in rows))
    for count, end in zip(num_rows_T, ends_T, strict=True)
  ]
