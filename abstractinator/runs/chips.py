"""What chips can do, by their documentation.

TPUs: docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e. GPUs: NVIDIA's data
sheets of H100 (SXM), H200 and A100 (SXM, 80 GB); rates are without sparsity.
Links are given there in both directions together, here in one.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip, which jax counts as one device.

  Attributes:
    device_kind: What jax calls it.
    memory_bytes: Of its high-bandwidth memory.
    flops_per_second: Peak of matrix products in bfloat16.
    memory_bytes_per_second: Peak.
    link_bytes_per_second: Peak of all links to other chips of a slice or a
      host, in one direction.
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
  """The chip that jax calls so; None if it is not in the table."""
  for chip in CHIPS.values():
    if chip.device_kind == device_kind:
      return chip
  return None
