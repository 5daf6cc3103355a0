"""The file format: a header, then blocks, each with its checksums.

Little-endian. Header: magic `ABSZ`, version u8, length of the text u64, lanes
u16, steps of a block u32, fingerprint of the model 16 bytes, then the writer
(which jax on what) with its length u8 before it; CRC-32 of all that. The
version says which model wrote it, 1 the entropy model and 2 the hierarchy. A
block: kind u8 (0 raw, 1 coded), size u32, CRC-32 of what is stored, CRC-32 of
the bytes it stands for, then what is stored.
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterator

MAGIC = b'ABSZ'
ENTROPY_MODEL, HIERARCHY = 1, 2
_NAMES = {ENTROPY_MODEL: 'entropy_model', HIERARCHY: 'hierarchy'}
RAW, CODED = 0, 1
_HEAD = struct.Struct('<4sBQHI16sB')
_CRC = struct.Struct('<I')
_BLOCK = struct.Struct('<BIII')


@dataclasses.dataclass(frozen=True)
class Header:
  """What is known of a text before its bytes.

  Attributes:
    length: Bytes.
    num_lanes: Parts of the text that are coded side by side.
    block_steps: Bytes of each lane in a block.
    fingerprint: Of the model, 16 bytes.
    writer: What computed its floats, up to 255 characters of ASCII.
    model: ENTROPY_MODEL or HIERARCHY.
  """

  length: int
  num_lanes: int
  block_steps: int
  fingerprint: bytes
  writer: str
  model: int


@dataclasses.dataclass(frozen=True)
class Block:
  """Some bytes of every lane.

  Attributes:
    kind: RAW or CODED.
    payload: As stored.
    crc: CRC-32 of the bytes it stands for.
  """

  kind: int
  payload: bytes
  crc: int


def block(raw: bytes, payload: bytes) -> Block:
  """The smaller of the two, bytes and what stands for them."""
  is_smaller = len(payload) < len(raw)
  return Block(
    CODED if is_smaller else RAW,
    payload if is_smaller else raw,
    zlib.crc32(raw),
  )


def require_model(header: Header, model: int, fingerprint: bytes) -> None:
  """Refuses files of other models.

  Raises:
    ValueError: If it was written by another one than that.
  """
  if header.model != model:
    raise ValueError(
      f'got a file of model {_NAMES[header.model]}, allowed: {_NAMES[model]}'
    )
  if header.fingerprint != fingerprint:
    raise ValueError(
      f'got a file of model {header.fingerprint.hex()}, allowed: the checkpoint'
      f' that wrote it; this one is {fingerprint.hex()}'
    )


def require_blocks(blocks: list[Block], count: int) -> None:
  """Refuses a file of more or fewer blocks.

  Raises:
    ValueError: If so.
  """
  if len(blocks) != count:
    raise ValueError(
      f'got {len(blocks)} blocks, allowed: {count}; the file is cut short or'
      ' damaged'
    )


def pack(header: Header, blocks: list[Block]) -> bytes:
  """Writes a file."""
  writer = header.writer.encode('ascii', 'replace')[:255]
  head = _HEAD.pack(
    MAGIC,
    header.model,
    header.length,
    header.num_lanes,
    header.block_steps,
    header.fingerprint,
    len(writer),
  )
  parts = [head, writer, _CRC.pack(zlib.crc32(head + writer))]
  for block in blocks:
    size, crc = len(block.payload), zlib.crc32(block.payload)
    parts += [_BLOCK.pack(block.kind, size, crc, block.crc), block.payload]
  return b''.join(parts)


def unpack(content: bytes) -> tuple[Header, list[Block]]:
  """Reads a file, all of which is checked.

  Args:
    content: Of the file.

  Returns:
    Its header and its blocks.

  Raises:
    ValueError: If it is no such file, of another version, cut short or damaged.
  """
  if content[: len(MAGIC)] != MAGIC:
    raise ValueError(
      f'got a file that begins with {content[:4]!r}, allowed: {MAGIC!r}, one'
      ' that `abstractinator compress` wrote'
    )
  _, model, *fields, writer_size = _HEAD.unpack(
    _slice(content, 0, _HEAD.size, 'header')
  )
  if model not in _NAMES:
    raise ValueError(
      f'got version {model} of the format, allowed: {min(_NAMES)} to'
      f' {max(_NAMES)}'
    )
  end = _HEAD.size + writer_size
  head = _slice(content, 0, end, 'header')
  (crc,) = _CRC.unpack(_slice(content, end, _CRC.size, 'header'))
  if zlib.crc32(head) != crc:
    raise ValueError('the header is damaged: its checksum differs')
  header = Header(*fields, head[_HEAD.size :].decode('ascii'), model)
  return header, list(_blocks(content, end + _CRC.size))


def _blocks(content: bytes, at: int) -> Iterator[Block]:
  number = 0
  while at < len(content):
    name = f'block {number}'
    kind, size, stored_crc, crc = _BLOCK.unpack(
      _slice(content, at, _BLOCK.size, name)
    )
    payload = _slice(content, at + _BLOCK.size, size, name)
    if kind not in (RAW, CODED) or zlib.crc32(payload) != stored_crc:
      raise ValueError(f'{name} is damaged: its checksum differs')
    yield Block(kind, payload, crc)
    at += _BLOCK.size + size
    number += 1


def _slice(content: bytes, start: int, size: int, name: str) -> bytes:
  found = content[start : start + size]
  if len(found) < size:
    raise ValueError(f'{name} is cut short or damaged: the file ends within it')
  return found
