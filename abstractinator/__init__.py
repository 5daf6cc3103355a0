"""A hierarchical autoencoder over bytes; `load` opens a trained one."""


def __getattr__(name: str):
  # Loading needs jax and orbax; importing the package must stay cheap.
  if name == 'load':
    from abstractinator.api import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
