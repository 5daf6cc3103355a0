"""A hierarchical autoencoder over bytes.

`load` opens a trained one; `read_codes` and `write_codes` know files of codes.
"""


def __getattr__(name: str):
  # Loading needs jax and orbax; importing the package must stay cheap.
  if name == 'load':
    from abstractinator.api import load

    return load
  if name in ('read_codes', 'write_codes'):
    from abstractinator import codes_files

    return getattr(codes_files, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
