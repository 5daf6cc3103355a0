"""Lossless compression of bytes under the models of a run."""
