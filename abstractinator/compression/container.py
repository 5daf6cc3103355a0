"""File format of compressed texts: a header, then blocks, with checksums.

Integers are little-endian.

  Header: magic `ABSZ`, version u8, length of the text u64, lanes u16, steps of
    a block u32, fingerprint of the model 16 bytes, size of the platform's name
    u8 and the name in ASCII; then the CRC-32 of all that.
  Block: kind u8 (0 raw, 1 coded), size u32, CRC-32 of the stored bytes, CRC-32
    of the bytes of the text, then the stored bytes.

The version is the kind of the model that wrote the file: 1 the entropy model, 2
the hierarchy.
"""

import dataclasses
import io
import struct
import zlib

import numpy as np

from abstractinator.compression.coder import most_bytes

MAGIC = b'ABSZ'
ENTROPY_MODEL, HIERARCHY = 1, 2
MODEL_NAMES = {ENTROPY_MODEL: 'entropy_model', HIERARCHY: 'hierarchy'}
RAW, CODED = 0, 1
_HEAD = struct.Struct('<4sBQHI16sB')
_CRC = struct.Struct('<I')
_BLOCK = struct.Struct('<BIII')


@dataclasses.dataclass(frozen=True)
class FileHeader:
  """Header of a compressed file.

  Attributes:
    model: ENTROPY_MODEL or HIERARCHY.
    length: Bytes of the text.
    num_lanes: Parts of the text that are coded side by side.
    block_steps: Bytes of each lane in a block.
    fingerprint: Fingerprint of the model's parameters and settings, 16 bytes.
    platform: Name of the software and device that computed the model's floats,
      up to 255 characters of ASCII.
  """

  model: int
  length: int
  num_lanes: int
  block_steps: int
  fingerprint: bytes
  platform: str

  @property
  def num_steps(self) -> int:
    """Bytes of the longest lane."""
    return -(-self.length // self.num_lanes)

  @property
  def num_blocks(self) -> int:
    """Number of blocks that hold the text."""
    return -(-self.num_steps // self.block_steps)

  def num_bytes(self, steps: slice) -> int:
    """Returns the bytes of the text at some steps of all lanes."""
    num_full, rest = divmod(self.length, max(self.num_steps, 1))
    in_rest = min(steps.stop, rest) - min(steps.start, rest)
    return num_full * (steps.stop - steps.start) + in_rest

  def steps_of(self, number: int) -> slice:
    """Returns the steps of a block, given its number."""
    start = number * self.block_steps
    return slice(start, min(start + self.block_steps, self.num_steps))


@dataclasses.dataclass(frozen=True)
class FileBlock:
  """Block of a compressed file: some bytes of every lane.

  Attributes:
    kind: RAW or CODED.
    payload: Stored bytes: those of the text (RAW) or of the coder (CODED).
    crc: CRC-32 of the bytes of the text.
  """

  kind: int
  payload: bytes
  crc: int


class TextLanes:
  """A text in B lanes of S bytes, which are coded side by side.

  Lane 0 has the first S bytes of the text, lane 1 the next S, and so on; the
  last lanes with bytes may have fewer. Step s is byte s of every lane. A block
  has the bytes of some consecutive steps, step by step.

  Attributes:
    num_lanes: Number of lanes, B.
    blocks: Slices of the steps of each block.
    text_N: Bytes of the text in order, uint8; zeros at first.
  """

  def __init__(self, header: FileHeader) -> None:
    self.num_lanes, self._header = header.num_lanes, header
    self.blocks = [header.steps_of(n) for n in range(header.num_blocks)]
    bytes_N = np.zeros(header.num_lanes * header.num_steps, np.uint8)
    self.text_N = bytes_N[: header.length]
    self._bytes_SB = bytes_N.reshape(header.num_lanes, header.num_steps).T

  def num_active(self, step: int) -> int:
    """Returns how many lanes, the first ones, have a byte at a step."""
    return self._header.num_bytes(slice(step, step + 1))

  def read_block(self, steps: slice) -> np.ndarray:
    """Returns the bytes of a block, [N] uint8."""
    return self._bytes_SB[steps][self._is_byte(steps)]

  def write_block(self, steps: slice, bytes_N: np.ndarray) -> None:
    """Puts the bytes of a block, [N] uint8, in their places."""
    self._bytes_SB[steps][self._is_byte(steps)] = bytes_N

  def _is_byte(self, steps: slice) -> np.ndarray:
    """Returns which lanes have a byte at the steps of a block, bool."""
    step_S1 = np.arange(steps.start, steps.stop)[:, None]
    first_B = np.arange(self.num_lanes) * self._header.num_steps
    return first_B + step_S1 < self._header.length


def block(raw: bytes, payload: bytes) -> FileBlock:
  """Returns a block that stores the shorter of two encodings.

  Args:
    raw: Bytes of the text.
    payload: Bytes that the coder wrote for them.
  """
  is_shorter = len(payload) < len(raw)
  kind, stored = (CODED, payload) if is_shorter else (RAW, raw)
  return FileBlock(kind, stored, zlib.crc32(raw))


def pack(header: FileHeader, blocks: list[FileBlock]) -> bytes:
  """Returns the content of a file, which `unpack` reads."""
  *fields, platform = dataclasses.astuple(header)
  platform = platform.encode('ascii', 'replace')[:255]
  head = _HEAD.pack(MAGIC, *fields, len(platform)) + platform
  parts = [head, _CRC.pack(zlib.crc32(head))]
  for b in blocks:
    size, crc = len(b.payload), zlib.crc32(b.payload)
    parts += [_BLOCK.pack(b.kind, size, crc, b.crc), b.payload]
  return b''.join(parts)


def unpack(content: bytes) -> tuple[FileHeader, list[FileBlock]]:
  """Reads a file and checks its checksums, and every number of its header.

  The numbers are held against what the file stores, so that the memory that a
  reader takes for the text is bounded by the size of the file.

  Args:
    content: Content of the file.

  Returns:
    Its header and its blocks.

  Raises:
    ValueError: If the file is of another format or version, cut short or
      damaged, or its header speaks of more than the file can hold.
  """
  if content[: len(MAGIC)] != MAGIC:
    raise ValueError(
      f'got a file that begins with {content[:4]!r}, allowed: {MAGIC!r}, one'
      ' that `abstractinator compress` wrote'
    )
  file = io.BytesIO(content)
  head = _read(file, _HEAD.size, 'header')
  _, model, *fields, size = _HEAD.unpack(head)
  if model not in MODEL_NAMES:
    raise ValueError(
      f'got version {model} of the format, allowed: {min(MODEL_NAMES)} to'
      f' {max(MODEL_NAMES)}'
    )
  platform = _read(file, size, 'header')
  (crc,) = _CRC.unpack(_read(file, _CRC.size, 'header'))
  if zlib.crc32(head + platform) != crc:
    raise ValueError('the header is damaged: its checksum differs')
  fields.append(platform.decode('ascii', 'replace'))
  header = FileHeader(model, *fields)
  _require_lanes(header)
  blocks: list[FileBlock] = []
  while file.tell() < len(content):
    name = f'block {len(blocks)}'
    kind, size, stored_crc, crc = _BLOCK.unpack(_read(file, _BLOCK.size, name))
    payload = _read(file, size, name)
    if kind not in (RAW, CODED) or zlib.crc32(payload) != stored_crc:
      raise ValueError(f'{name} is damaged: its checksum differs')
    blocks.append(FileBlock(kind, payload, crc))
  _require_blocks(header, blocks)
  return header, blocks


def _require_lanes(header: FileHeader) -> None:
  """Requires lanes and blocks that hold something."""
  most = max(header.length, 1)
  for name, value in (
    ('lanes', header.num_lanes),
    ('steps of a block', header.block_steps),
  ):
    if value < 1:
      raise ValueError(
        f'the header is damaged: got 0 {name}, allowed: 1 or more'
      )
  if header.num_lanes > most:
    raise ValueError(
      f'the header is damaged: got {header.num_lanes} lanes, allowed: at most'
      f' {most}, the bytes of the text'
    )


def _require_blocks(header: FileHeader, blocks: list[FileBlock]) -> None:
  """Requires blocks that can hold the text that the header describes."""
  if len(blocks) != header.num_blocks:
    raise ValueError(
      f'got {len(blocks)} blocks, allowed: {header.num_blocks}; the file is cut'
      ' short or damaged'
    )
  for number, b in enumerate(blocks):
    count, stored = header.num_bytes(header.steps_of(number)), len(b.payload)
    most = stored if b.kind == RAW else most_bytes(stored)
    if count > most or (b.kind == RAW and count < stored):
      raise ValueError(
        f'block {number} is damaged: got {stored} stored bytes for {count} of'
        ' the text, allowed: as many as they can hold'
      )


def _read(file: io.BytesIO, size: int, name: str) -> bytes:
  found = file.read(size)
  if len(found) < size:
    raise ValueError(f'{name} is cut short or damaged: the file ends within it')
  return found
