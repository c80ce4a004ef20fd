"""Claims of the family density.circuits."""
