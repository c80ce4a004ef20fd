"""Claims of the family density.networks."""
