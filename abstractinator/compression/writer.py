"""What computes floats here, and what is said where it matters."""

import jax

from abstractinator.compression.container import Header


def writer() -> str:
  """What computes floats here."""
  device = jax.devices()[0]
  return f'jax {jax.__version__} on {device.platform} {device.device_kind}'


def other_floats(number: int, header: Header) -> ValueError:
  """The error of a block that is sound and decodes to something else."""
  return ValueError(
    f'block {number} decodes to something else: floats differ between'
    f' {header.writer}, where it was written, and {writer()}; allowed: the'
    ' same machine and version'
  )
