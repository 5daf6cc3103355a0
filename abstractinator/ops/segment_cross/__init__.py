"""Segment cross-attention: ids attend to their own and earlier segments."""

from abstractinator.ops.segment_cross.api import segment_cross_attention

__all__ = ['segment_cross_attention']
