"""Claims of the family density.clustering."""
