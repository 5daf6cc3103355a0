"""Lossless compression of bytes under the entropy model of a run."""
