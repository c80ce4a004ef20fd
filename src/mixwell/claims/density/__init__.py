"""Claims of the density room."""
