"""Claims of the convert room."""
