"""An HTML page that shows a text, its segments and codes."""
