"""Decoding: codes to ids to text, greedily or drawn, at once or as it comes."""
