"""Claims of the family density.regression."""
