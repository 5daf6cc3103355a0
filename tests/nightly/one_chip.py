"""A chip that is not at hand, to compile kernels for. Import it before jax."""

import functools

from abstractinator.planning import topology

topology.prepare_environment()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

# Of each platform: the name of our kernels, and of what programs call them by.
_KERNELS = {
  'tpu': ('pallas_tpu', 'tpu_custom_call'),
  'gpu': ('pallas_triton', '__gpu$xla.gpu.triton'),
}


class OneChip:
  """The first of a slice.

  Attributes:
    platform: 'tpu' or 'gpu'.
    implementation: Of ops that have kernels for it.
    array: From a shape and a type, an array there.
  """

  def __init__(self, name: str):
    """Takes the name of a slice, as `planning.topology` does."""
    chips = topology.parse(name)
    self._mesh = Mesh(np.array(topology.devices(chips)[:1]), ('data',))
    self.platform = chips.platform
    self.implementation, self._target = _KERNELS[chips.platform]
    self.array = functools.partial(
      jax.ShapeDtypeStruct, sharding=NamedSharding(self._mesh, PartitionSpec())
    )

  def compile(self, function, args) -> dict[str, int]:
    """Compiles; returns what became of it."""
    with jax.set_mesh(self._mesh):
      compiled = jax.jit(function).lower(*args).compile()
    target = f'custom_call_target="{self._target}"'
    return {
      'kernels': compiled.as_text().count(target),
      'temporary bytes': compiled.memory_analysis().temp_size_in_bytes,
    }
