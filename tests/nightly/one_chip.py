"""A chip that is not at hand, to compile kernels for; import it before jax."""

import functools

from abstractinator.planning import topology

topology.prepare_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

# Implementations that are kernels, and the targets of their custom calls, by
# platform; the first is the one that stands for the platform.
_KERNELS = {
  'tpu': {'pallas_tpu': 'tpu_custom_call'},
  'gpu': {
    'pallas_triton': '__gpu$xla.gpu.triton',
    'mosaic_gpu': 'mosaic_gpu_v2',
  },
}


class OneChip:
  """First chip of a slice.

  Attributes:
    platform: 'tpu' or 'gpu'.
    implementation: Name of the kernels for it, of ops that have any.
    array: Function from shape and type to an abstract array on the chip.
  """

  def __init__(self, name: str, implementation: str | None = None):
    """Sets up the chip.

    Args:
      name: Name of a slice in `planning.topology`, such as 'v5e-4'.
      implementation: Name of the kernels; by default those that stand for the
        platform.
    """
    chips = topology.parse(name)
    self._mesh = Mesh(np.array(topology.devices(chips)[:1]), ('data',))
    self.platform = chips.platform
    kernels = _KERNELS[chips.platform]
    self.implementation = implementation or next(iter(kernels))
    self._target = kernels[self.implementation]
    self.array = functools.partial(
      jax.ShapeDtypeStruct, sharding=NamedSharding(self._mesh, PartitionSpec())
    )

  def compile(self, function, args):
    """Returns kernels and bytes of temporary memory of a compiled function."""
    with jax.set_mesh(self._mesh):
      compiled = jax.jit(function).lower(*args).compile()
    target = f'custom_call_target="{self._target}"'
    return {
      'kernels': compiled.as_text().count(target),
      'temporary bytes': compiled.memory_analysis().temp_size_in_bytes,
    }
