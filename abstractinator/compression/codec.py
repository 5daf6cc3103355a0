"""Texts to files and back, under the entropy model of a run.

A text is divided into lanes, equal parts that are coded side by side: each
step takes one byte of every lane, in one call of the model. A lane starts
without context, so few lanes compress better and many are faster.
"""

import zlib

import numpy as np

from abstractinator.compression import container
from abstractinator.compression.byte_model import ByteModel
from abstractinator.compression.coder import Decoder, Encoder
from abstractinator.compression.container import (
  CODED,
  ENTROPY_MODEL,
  RAW,
  Header,
)
from abstractinator.compression.writer import other_floats, writer

_LANE_BYTES = 16384
_MAX_LANES = 256
_LIMIT_LANES = 65535
_BLOCK_BYTES = 65536


def compress(
  model: ByteModel, data: bytes, num_lanes: int | None = None
) -> bytes:
  """Writes a text as a file that `decompress` reads.

  Args:
    model: Of the run.
    data: Any bytes, none too.
    num_lanes: Lanes; a power of two that leaves each about 16 kB by default,
      at most 256.

  Returns:
    The content of the file. Of parts that do not shrink it has the bytes.

  Raises:
    ValueError: If the number of lanes is out of its range, or the model
      predicts no numbers.
  """
  if num_lanes is None:
    wanted = max(len(data) // _LANE_BYTES, 1)
    num_lanes = min(1 << (wanted.bit_length() - 1), _MAX_LANES)
  if not 1 <= num_lanes <= _LIMIT_LANES:
    raise ValueError(
      f'num_lanes: got {num_lanes}, allowed: 1 to {_LIMIT_LANES}'
    )
  header = Header(
    length=len(data),
    num_lanes=num_lanes,
    block_steps=max(_BLOCK_BYTES // num_lanes, 1),
    fingerprint=model.fingerprint,
    writer=writer(),
    model=ENTROPY_MODEL,
  )
  lanes = _Lanes(header)
  lanes_BT = lanes.empty()
  lanes_BT.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
  predict = _Predictions(model, num_lanes)
  blocks = []
  for start, stop in lanes.blocks():
    encoder = Encoder()
    for step in range(start, stop):
      frequencies_BV = predict(lanes_BT, step)
      count = lanes.num_active(step)
      encoder.add(lanes_BT[:count, step], frequencies_BV[:count])
    raw = lanes.join(lanes_BT, start, stop)
    blocks.append(container.block(raw, encoder.finish()))
  return container.pack(header, blocks)


def decompress(model: ByteModel, content: bytes) -> bytes:
  """Reads a file that `compress` has written.

  Args:
    model: Of the same run.
    content: Of the file.

  Returns:
    The text, byte for byte.

  Raises:
    ValueError: If the file is damaged, of another model, or was written where
      floats are rounded otherwise.
  """
  header, blocks = container.unpack(content)
  container.require_model(header, ENTROPY_MODEL, model.fingerprint)
  lanes = _Lanes(header)
  spans = list(lanes.blocks())
  container.require_blocks(blocks, len(spans))
  lanes_BT = lanes.empty()
  predict = _Predictions(model, header.num_lanes)
  # What comes after the last coded block needs no model.
  last = max((i for i, b in enumerate(blocks) if b.kind == CODED), default=-1)
  for number, ((start, stop), block) in enumerate(
    zip(spans, blocks, strict=True)
  ):
    if block.kind == RAW:
      lanes.split(lanes_BT, start, stop, block.payload, f'block {number}')
    steps = range(start, stop) if number <= last else ()
    decoder = Decoder(block.payload) if block.kind == CODED else None
    try:
      for step in steps:
        frequencies_BV = predict(lanes_BT, step)
        if decoder is not None:
          count = lanes.num_active(step)
          lanes_BT[:count, step] = decoder.take(frequencies_BV[:count], count)
      if zlib.crc32(lanes.join(lanes_BT, start, stop)) != block.crc:
        raise ValueError('the checksum of the bytes differs')
    except ValueError as error:
      raise other_floats(number, header) from error
  return lanes_BT.reshape(-1)[: header.length].tobytes()


class _Predictions:
  """Frequencies of each step in turn, given the bytes of the steps before."""

  def __init__(self, model: ByteModel, num_lanes: int):
    self._model, self._num_lanes = model, num_lanes
    self._cache = None

  def __call__(self, lanes_BT: np.ndarray, step: int) -> np.ndarray:
    """[B, 256] int32 of step `step`, 0 at first and then one more each time."""
    interval = self._model.reset_interval
    if step == 0 or (interval is not None and step % interval == 0):
      self._cache = self._model.start(self._num_lanes)
    last_B = lanes_BT[:, max(step - 1, 0)].astype(np.int32)
    frequencies, self._cache = self._model.step(last_B, self._cache)
    frequencies_BV = np.asarray(frequencies)
    if frequencies_BV.min() < 1:
      raise ValueError(
        f'step {step}: the model predicts what is no number, allowed: a'
        ' checkpoint whose parameters are finite'
      )
    return frequencies_BV


class _Lanes:
  """How a text lies in lanes: the first T bytes are lane 0, and so on."""

  def __init__(self, header: Header):
    self._header = header
    self._size = -(-header.length // header.num_lanes)

  def empty(self) -> np.ndarray:
    """[B, T] uint8 of nothing."""
    return np.zeros((self._header.num_lanes, self._size), np.uint8)

  def blocks(self):
    """First step and the one after the last of each block."""
    for start in range(0, self._size, self._header.block_steps):
      yield start, min(start + self._header.block_steps, self._size)

  def num_active(self, step: int) -> int:
    """Lanes that have a byte, the first ones."""
    return -(-(self._header.length - step) // self._size)

  def join(self, lanes_BT: np.ndarray, start: int, stop: int) -> bytes:
    """The bytes of a block, step by step."""
    return lanes_BT.T[start:stop][self._mask(start, stop)].tobytes()

  def split(self, lanes_BT, start, stop, raw: bytes, name: str) -> None:
    """Undoes `join`."""
    mask_TB = self._mask(start, stop)
    if len(raw) != mask_TB.sum():
      raise ValueError(
        f'{name}: got {len(raw)} bytes, allowed: {mask_TB.sum()}'
      )
    lanes_BT.T[start:stop][mask_TB] = np.frombuffer(raw, np.uint8)

  def _mask(self, start, stop) -> np.ndarray:
    count_T = np.array([self.num_active(step) for step in range(start, stop)])
    return np.arange(self._header.num_lanes) < count_T[:, None]
