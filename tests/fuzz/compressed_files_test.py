"""Mutated compressed files, of both models, damaged with and without a hint.

A reader meets damage by accident, where a checksum differs, and by intent,
where all checksums fit: half of the cases have theirs computed anew.
"""

import dataclasses
import functools
import struct
import zlib

import pytest

from abstractinator.compression import container
from abstractinator.compression.byte_model import ByteModel
from abstractinator.compression.codec import compress, decompress
from abstractinator.compression.container import CODED, FileBlock
from tests.helpers import fuzz, tiny_hierarchy, tiny_run

TEXT = b'some words, and other words, and more. ' * 6
_NUMBERS = ('length', 'num_lanes', 'block_steps')


@functools.cache
def _models():
  config = tiny_run.config()
  hierarchy, variables = tiny_hierarchy.make(config)
  return ByteModel(config, variables), hierarchy


@functools.cache
def _file(number: int) -> bytes:
  """Returns a file of several blocks, all coded, though the text grows."""
  model = _models()[number]
  whole = container.block
  container.block = lambda raw, x: FileBlock(CODED, x, zlib.crc32(raw))
  try:
    content = compress(model, TEXT, num_lanes=1, block_bytes=100)
  finally:
    container.block = whole
  assert decompress(model, content) == TEXT
  return content


def _prepare():
  for number in range(2):
    _file(number)


def _with_checksums(content: bytes) -> bytes:
  """Returns a file whose checksums fit what it says, as far as it goes."""
  head, at = struct.Struct('<4sBQHI16sB'), 0
  data = bytearray(content)
  if len(data) < head.size:
    return content
  at = head.size + data[head.size - 1]
  data[at : at + 4] = struct.pack('<I', zlib.crc32(data[:at]))
  at += 4
  while at + 13 <= len(data):
    (size,) = struct.unpack('<I', data[at + 1 : at + 5])
    stored = data[at + 13 : at + 13 + size]
    data[at + 5 : at + 9] = struct.pack('<I', zlib.crc32(stored))
    at += 13 + size
  return bytes(data)


def _read(number: int, content: bytes, is_sound: bool) -> None:
  data = decompress(_models()[number], content)
  # A file may say less than it did; what it says has a checksum.
  assert data == TEXT or not is_sound


def mutated(random, folder):
  number = int(random.integers(2))
  content = fuzz.mutate(random, _file(number))
  is_sound = random.integers(2) == 0
  _read(number, content if is_sound else _with_checksums(content), is_sound)


def forged(random, folder):
  """Numbers of the header, and blocks, are drawn; all checksums fit."""
  number = int(random.integers(2))
  header, blocks = container.unpack(_file(number))
  drawn = {
    name: int(random.choice([0, 1, 2, 3, 255, 65535, random.integers(1 << 20)]))
    for name in _NUMBERS
    if random.integers(2)
  }
  if random.integers(4) == 0:
    drawn['length'] = int(random.integers(1 << 62))
  drawn['num_lanes'] = min(drawn.get('num_lanes', 1), 65535)
  header = dataclasses.replace(header, **drawn)
  for _ in range(random.integers(3)):
    blocks.insert(0, blocks[random.integers(len(blocks))])
  blocks = [_block(random, block) for block in blocks]
  _read(number, container.pack(header, blocks), is_sound=False)


def _block(random, block: FileBlock) -> FileBlock:
  payload = block.payload
  match random.integers(6):
    case 0:
      payload = fuzz.mutate(random, payload)
    case 1:
      payload = random.bytes(int(random.integers(64)))
    case 2:
      payload = payload[: int(random.integers(len(payload)))]
  kind = block.kind if random.integers(5) else int(random.integers(2))
  return FileBlock(kind, payload, block.crc)


@pytest.mark.nightly
@pytest.mark.parametrize('case', [mutated, forged])
def test_compressed_files(case, tmp_path):
  counts = fuzz.run(
    case,
    1600,
    tmp_path,
    names='block|header|file|lanes|version',
    prepare=_prepare,
  )
  assert counts['refused'] > 1000
