"""Claims of the family density.robust."""
