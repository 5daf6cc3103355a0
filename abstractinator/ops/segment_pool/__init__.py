"""Softmax-weighted means of the values of each segment."""

from abstractinator.ops.segment_pool.api import segment_pool

__all__ = ['segment_pool']
