"""A chip that is not at hand, to compile kernels for; import it before jax."""

import functools

from abstractinator.planning import topology

topology.prepare_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

# Implementation that is kernels, and target of the custom calls in a program,
# by platform.
_KERNELS = {
  'tpu': ('pallas_tpu', 'tpu_custom_call'),
  'gpu': ('pallas_triton', '__gpu$xla.gpu.triton'),
}


class OneChip:
  """First chip of a slice.

  Attributes:
    platform: 'tpu' or 'gpu'.
    implementation: Name of the kernels for it, of ops that have any.
    array: Function from shape and type to an abstract array on the chip.
  """

  def __init__(self, name: str):
    """Sets up the chip.

    Args:
      name: Name of a slice in `planning.topology`, such as 'v5e-4'.
    """
    chips = topology.parse(name)
    self._mesh = Mesh(np.array(topology.devices(chips)[:1]), ('data',))
    self.platform = chips.platform
    self.implementation, self._target = _KERNELS[chips.platform]
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
