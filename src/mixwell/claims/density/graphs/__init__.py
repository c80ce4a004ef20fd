"""Claims of the family density.graphs."""
