"""Texts continued, on the host; see `options` for how, `texts` for what."""
