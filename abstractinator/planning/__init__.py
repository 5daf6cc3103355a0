"""What a run would take on chips that are not at hand."""
