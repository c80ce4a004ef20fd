"""Claims of the sequence room."""
