"""Claims of the family density.values."""
