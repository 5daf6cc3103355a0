"""Memory and peak rates of TPUs and GPUs, from their documentation.

TPUs: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e. GPUs: NVIDIA's data
sheets of H100 (SXM), H200 and A100 (SXM, 80 GB); rates are without sparsity.
The sources state the rate of links in both directions together; here it is the
rate in one direction.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, which jax counts as one device.

  Attributes:
    device_kind: Name of the chip in jax.
    memory_bytes: Size of the high-bandwidth memory.
    flops_per_second: Peak rate of matrix products in bfloat16.
    memory_bytes_per_second: Peak rate of the high-bandwidth memory.
    link_bytes_per_second: Peak rate of all links to other chips of a slice or a
      host together, in one direction.
  """

  device_kind: str
  memory_bytes: float
  flops_per_second: float
  memory_bytes_per_second: float
  link_bytes_per_second: float


CHIPS = {
  'v5e': Chip('TPU v5 lite', 16e9, 197e12, 819e9, 200e9),
  'v5p': Chip('TPU v5', 95 * 2**30, 459e12, 2765e9, 600e9),
  'v6e': Chip('TPU v6 lite', 32e9, 918e12, 1600e9, 400e9),
  'a100': Chip('NVIDIA A100-SXM4-80GB', 80e9, 312e12, 2039e9, 300e9),
  'h100': Chip('NVIDIA H100 80GB HBM3', 80e9, 989.4e12, 3350e9, 450e9),
  'h200': Chip('NVIDIA H200', 141e9, 989.4e12, 4800e9, 450e9),
}


def chip_of(device_kind: str) -> Chip | None:
  """Returns the chip with this name in jax; None if it is not in the table."""
  found = (c for c in CHIPS.values() if c.device_kind == device_kind)
  return next(found, None)
