"""Lowers programs for TPU and GPU where there is neither."""

import inspect

import jax
from jax.sharding import AbstractDevice, AbstractMesh

_DEVICES = {
  'tpu': dict(device_kind='TPU v5 lite', num_cores=1, platform='tpu'),
  'cuda': dict(
    device_kind='NVIDIA H100 80GB HBM3', num_cores=132, platform='gpu'
  ),
}


def lowered(function, *args, platform):
  """The program that a function becomes on a device of a platform, as text.

  Args:
    function: Function to lower.
    *args: Arrays, or their shapes and types.
    platform: 'tpu' (a v5e) or 'cuda' (an H100).
  """
  # jax 0.10 knows no platform of an abstract device.
  known = inspect.signature(AbstractDevice).parameters
  device = {k: v for k, v in _DEVICES[platform].items() if k in known}
  mesh = AbstractMesh((), (), abstract_device=AbstractDevice(**device))
  with jax.sharding.use_abstract_mesh(mesh):
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=(platform,)).as_text()
