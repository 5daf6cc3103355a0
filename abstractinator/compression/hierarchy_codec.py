"""Texts to files and back, under the levels of a run.

Of each block the top codes come first, under a discrete top LM, or where there
is none a unigram that learns as it goes, and then, from the top level to the
bytes, the ids of segments given their codes and where the segments end.
"""

import itertools
import operator
import struct
import zlib

import numpy as np

from abstractinator.compression import container
from abstractinator.compression.code_top_lm import CodeTopLM
from abstractinator.compression.code_unigram import CodeUnigram
from abstractinator.compression.coder import Decoder, Encoder
from abstractinator.compression.container import CODED, HIERARCHY, RAW, Header
from abstractinator.compression.hierarchy_model import HierarchyModel
from abstractinator.compression.segment_coder import Segments, code_segments
from abstractinator.compression.writer import other_floats, writer

_BLOCK_BYTES = 65536
_SIZE = struct.Struct('<I')


def compress(model: HierarchyModel, data: bytes) -> bytes:
  """Writes a text as a file that `decompress` reads.

  Args:
    model: Of the run.
    data: Any bytes, none too.

  Returns:
    The content of the file. Of parts that do not shrink it has the bytes.

  Raises:
    ValueError: If the model predicts no numbers.
  """
  header = Header(
    length=len(data),
    num_lanes=1,
    block_steps=_BLOCK_BYTES,
    fingerprint=model.fingerprint,
    writer=writer(),
    model=HIERARCHY,
  )
  codes, blocks = model.new_codes(), []
  for start in range(0, len(data), _BLOCK_BYTES):
    raw = data[start : start + _BLOCK_BYTES]
    after = codes.copy()
    block = container.block(raw, write_block(model, after, raw))
    blocks.append(block)
    if block.kind == CODED:
      # Who reads knows nothing of the codes of the others.
      codes = after
  return container.pack(header, blocks)


def decompress(model: HierarchyModel, content: bytes) -> bytes:
  """Reads a file that `compress` has written; see `codec.decompress`."""
  header, blocks = container.unpack(content)
  container.require_model(header, HIERARCHY, model.fingerprint)
  sizes = [
    min(header.block_steps, header.length - start)
    for start in range(0, header.length, header.block_steps)
  ]
  container.require_blocks(blocks, len(sizes))
  codes, parts = model.new_codes(), []
  for number, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
    raw = block.payload
    try:
      if block.kind != RAW:
        raw = read_block(model, codes, block.payload, size)
      if len(raw) != size or zlib.crc32(raw) != block.crc:
        raise ValueError('the checksum of the bytes differs')
    except ValueError as error:
      raise other_floats(number, header) from error
    parts.append(raw)
  return b''.join(parts)


def write_block(
  model: HierarchyModel, codes: CodeUnigram | CodeTopLM, raw: bytes
) -> bytes:
  """Codes of bytes, and bytes given those.

  Args:
    model: Of the run.
    codes: Of the model; a unigram learns these.
    raw: At least one byte.

  Returns:
    How many top codes there are and the segments of a lane of each level, top
    first, u32 each, and then what the coder makes of all.
  """
  encoder = Encoder()

  def code(frequencies, symbols_N):
    encoder.add(symbols_N, frequencies)
    return symbols_N

  segments_of_levels, codes_N = model.encode(raw)
  codes.code(codes_N, code)
  head = [len(codes_N)]
  for level, segments in zip(
    reversed(model.levels), reversed(segments_of_levels), strict=True
  ):
    ids_N = segments.joined()
    lane_segments = level.lane_segments(len(segments.length_P), len(ids_N))
    head.append(lane_segments)
    codes_PQ = codes_N.reshape(-1, level.queries)
    code_segments(level, codes_PQ, lane_segments, segments, code)
    codes_N = ids_N
  return b''.join(map(_SIZE.pack, head)) + encoder.finish()


def read_block(
  model: HierarchyModel,
  codes: CodeUnigram | CodeTopLM,
  payload: bytes,
  size: int,
) -> bytes:
  """Undoes `write_block`.

  Args:
    model: Of the run.
    codes: Of the model, as it was when they were written.
    payload: What was written.
    size: How many bytes there were.

  Returns:
    The bytes.

  Raises:
    ValueError: If nothing of such a model was written so.
  """
  at = _SIZE.size * (1 + len(model.levels))
  if len(payload) < at:
    raise ValueError(f'got {len(payload)} bytes, allowed: at least {at}')
  num_codes, *lanes = (x for (x,) in _SIZE.iter_unpack(payload[:at]))
  # A segment has an id at least, and each so many codes: the ids of a level,
  # bottom first, and the top codes are at most so many.
  queries = [level.queries for level in model.levels]
  *most_ids, most_codes = itertools.accumulate(
    queries, operator.mul, initial=size
  )
  if num_codes > most_codes or num_codes % queries[-1]:
    raise ValueError(f'got {num_codes} codes, allowed: {most_codes} at most')
  decoder = Decoder(payload[at:])

  def code(frequencies, symbols_N):
    return decoder.take(frequencies, len(symbols_N))

  ids_N = codes.code(np.zeros(num_codes, np.int32), code)
  for level, most, lane_segments in zip(
    reversed(model.levels), reversed(most_ids), lanes, strict=True
  ):
    codes_PQ = ids_N.reshape(-1, level.queries)
    if not 0 < lane_segments <= max(len(codes_PQ), 1):
      raise ValueError(f'got lanes of {lane_segments} segments')
    segments = Segments.empty(len(codes_PQ), level.length)
    code_segments(level, codes_PQ, lane_segments, segments, code)
    ids_N = segments.joined()
    if len(ids_N) > most:
      raise ValueError(f'got {len(ids_N)} ids, allowed: {most}')
  return ids_N.astype(np.uint8).tobytes()
