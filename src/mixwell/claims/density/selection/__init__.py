"""Claims of the family density.selection."""
