"""Needs of a run on chips that are not at hand, by compiling for them."""
