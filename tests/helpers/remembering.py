"""Cross-attention of whole rows: keys and values of codes, then attention."""


def remember_and_cross(module, x, memory, index, lowest, **visible):
  """Returns cross-attention of ids `x` to codes; a method for `apply`."""
  key_values = module.remember(memory, **visible)
  return module.cross(x, key_values, index, lowest, **visible)
