"""Claims of the precision room."""
