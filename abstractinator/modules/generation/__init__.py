"""Continuation of rows of bytes through the levels of a pyramid.

The functions take bound modules first, as those of `compressor_stream` do. A
row is the beginning of one document. `prompt` compresses it, `top` draws codes
of the top level, `expansion` makes ids of them, level by level, and `pyramid`
puts them together: `start` once, then `extend` as often as bytes are wanted.
"""
