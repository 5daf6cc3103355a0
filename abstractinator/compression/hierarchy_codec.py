"""Names of `codec` for callers of the former module; to be removed."""

from abstractinator.compression.codec import compress, decompress

__all__ = ['compress', 'decompress']
