"""Sliding-window self-attention within groups of a row."""

from abstractinator.ops.attention.api import attention

__all__ = ['attention']
