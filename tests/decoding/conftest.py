"""A level small enough to follow every one of its ids."""

from tests.helpers.tiny_level import make_batch, tiny_config, tiny_level

__all__ = ['make_batch', 'tiny_config', 'tiny_level']
