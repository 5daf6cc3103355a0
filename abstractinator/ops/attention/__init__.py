"""Causal self-attention within groups of a row."""

from abstractinator.ops.attention.api import attention
from abstractinator.ops.attention.cached import cached_attention

__all__ = ['attention', 'cached_attention']
