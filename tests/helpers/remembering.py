"""Cross-attention as of a whole row: remembers a memory and attends to it."""


def remember_and_cross(module, x, memory, index, lowest, **visible):
  """What `module` makes of ids `x`; a method for `apply`."""
  remembered = module.remember(memory, **visible)
  return module.cross(x, remembered, index, lowest, **visible)
