"""Claims of the family density.mixtures."""
