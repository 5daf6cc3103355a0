"""Which implementation of the ops a platform gets."""

import functools

from absl import logging

# By platform, as `jax.default_backend()` or the devices of a mesh name it.
_AUTO = {'cpu': 'xla', 'gpu': 'xla', 'tpu': 'xla'}
_ALLOWED = ('auto', 'reference', 'xla')


@functools.cache
def resolve_implementation(name: str, platform: str) -> str:
  """Turns the setting `model.implementation` into what the ops take.

  The choice is logged the first time it is asked for.

  Args:
    name: 'auto', 'reference' or 'xla'.
    platform: 'cpu', 'gpu' or 'tpu'; matters to 'auto' only.

  Returns:
    'reference' or 'xla'.

  Raises:
    ValueError: If the name is unknown, or it is 'auto' and the platform is.
  """
  if name not in _ALLOWED:
    raise ValueError(
      f'model.implementation: got {name!r}, allowed: {", ".join(_ALLOWED)}'
    )
  if name != 'auto':
    return name
  if platform not in _AUTO:
    raise ValueError(
      f"model.implementation: got 'auto' on platform {platform!r}, allowed"
      f' platforms: {", ".join(_AUTO)}; name an implementation instead'
    )
  logging.info('implementation of the ops on %s: %s', platform, _AUTO[platform])
  return _AUTO[platform]
