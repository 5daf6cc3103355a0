"""Search for the nearest codebook entry of each vector."""

from abstractinator.ops.nearest_code.api import nearest_code

__all__ = ['nearest_code']
