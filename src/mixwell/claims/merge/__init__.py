"""Claims of merges."""
