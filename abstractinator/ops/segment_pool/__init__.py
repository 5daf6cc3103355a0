"""Segment pooling: means of the values of segments, weighted by softmax."""

from abstractinator.ops.segment_pool.api import segment_pool

__all__ = ['segment_pool']
