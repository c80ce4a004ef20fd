"""Claims of the scaling room."""
