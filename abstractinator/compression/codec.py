"""Lossless compression of texts under the predictions of a trained model.

A text is divided into lanes, equal parts that are coded side by side. Each lane
starts without context, so few lanes compress better and many are faster.
"""

import pathlib
import platform
import re
import zlib

import jax
import numpy as np

from abstractinator.compression import container
from abstractinator.compression.byte_model import ByteModel
from abstractinator.compression.coder import RangeCoder
from abstractinator.compression.container import (
  CODED,
  MODEL_NAMES,
  RAW,
  FileHeader,
  TextLanes,
)
from abstractinator.compression.hierarchy_model import HierarchyModel

_LANE_BYTES = 16384
_DEFAULT_MAX_LANES = 256


def compress(
  model: ByteModel | HierarchyModel,
  data: bytes,
  num_lanes: int | None = None,
  *,
  block_bytes: int = 65536,
) -> bytes:
  """Compresses a text; `decompress` restores it.

  Args:
    model: The model that predicts the text.
    data: The text: any bytes, or none.
    num_lanes: Number of lanes; a text has no more of them than bytes. By
      default the largest power of two that leaves each lane at least 16 KiB, at
      most 256 and `model.max_lanes`.
    block_bytes: Bytes of a block. Blocks that do not shrink are stored raw.

  Returns:
    The content of the compressed file.

  Raises:
    ValueError: If `num_lanes` is out of its range.
  """
  if num_lanes is None:
    wanted = max(len(data) // _LANE_BYTES, 1)
    most = min(_DEFAULT_MAX_LANES, model.max_lanes)
    num_lanes = min(1 << (wanted.bit_length() - 1), most)
  if not 1 <= num_lanes <= model.max_lanes:
    raise ValueError(
      f'num_lanes: got {num_lanes}, allowed: 1 to {model.max_lanes}'
    )
  num_lanes = min(num_lanes, max(len(data), 1))
  header = FileHeader(
    model=model.kind,
    length=len(data),
    num_lanes=num_lanes,
    block_steps=max(block_bytes // num_lanes, 1),
    fingerprint=model.fingerprint,
    platform=_platform(),
  )
  lanes = TextLanes(header)
  lanes.text_N[:] = np.frombuffer(data, np.uint8)
  block_coder, blocks = model.block_coder(lanes), []
  for steps in lanes.blocks:
    bytes_N, encoder = lanes.read_block(steps), RangeCoder()
    block_coder.code(bytes_N, encoder)
    blocks.append(container.block(bytes_N.tobytes(), encoder.finish()))
    if blocks[-1].kind == RAW:
      block_coder.forget()
  return container.pack(header, blocks)


def decompress(model: ByteModel | HierarchyModel, content: bytes) -> bytes:
  """Restores a text that `compress` wrote.

  Args:
    model: The model that the text was compressed under.
    content: Content of the compressed file.

  Returns:
    The text, byte for byte.

  Raises:
    ValueError: If the file is damaged, of another model, or was written where
      floats are rounded otherwise.
  """
  header, blocks = container.unpack(content)
  wrote = f'{MODEL_NAMES[header.model]} {header.fingerprint.hex()}'
  this = f'{MODEL_NAMES[model.kind]} {model.fingerprint.hex()}'
  if wrote != this:
    raise ValueError(
      f'got a file of model {wrote}, allowed: the checkpoint that wrote it;'
      f' this one is {this}'
    )
  if header.num_lanes > model.max_lanes:
    raise ValueError(
      f'got {header.num_lanes} lanes, allowed: at most {model.max_lanes}'
    )
  lanes = TextLanes(header)
  block_coder = model.block_coder(lanes)
  # The model need not follow the text after the last coded block.
  last = max((i for i, b in enumerate(blocks) if b.kind == CODED), default=-1)
  for number, (steps, block) in enumerate(
    zip(lanes.blocks, blocks, strict=True)
  ):
    bytes_N = lanes.read_block(steps)
    try:
      if block.kind == CODED:
        bytes_N = block_coder.code(bytes_N, RangeCoder(block.payload))
      else:
        bytes_N = np.frombuffer(block.payload, np.uint8)
        if number < last:
          block_coder.code(bytes_N, None)
      lanes.write_block(steps, bytes_N)
      if zlib.crc32(lanes.read_block(steps).data) != block.crc:
        raise ValueError('the checksum of the bytes differs')
    except ValueError as error:
      raise ValueError(
        f'block {number} decodes to something else, {error}:'
        f' {_cause(header.platform, _platform())}'
      ) from error
  return lanes.text_N.tobytes()


def _cause(wrote: str, reads: str) -> str:
  """Returns why a block decodes to something else, and what is allowed."""
  if wrote == reads:
    return (
      'the file is damaged, or written by other code, since floats are those'
      f' of {reads}, where it was written; allowed: the file that `compress`'
      ' wrote, and the version of abstractinator that did'
    )
  return (
    f'floats differ between {wrote}, where it was written, and {reads};'
    ' allowed: the same processor and version'
  )


def _platform() -> str:
  """Returns the name of the software and processor that compute floats here.

  Floats do not depend on the number of threads or devices.
  """
  device = jax.devices()[0]
  kind = device.device_kind
  if device.platform == 'cpu':
    kind = _processor()
  return f'jax {jax.__version__} on {device.platform} {kind}'


def _processor() -> str:
  """Returns the name of the processor: programs are compiled for its kind."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:  # Other systems than Linux have no such file.
    text = ''
  names = re.findall(r'^model name\s*: (.*)$', text, re.MULTILINE)
  return names[0].strip() if names else platform.machine()
