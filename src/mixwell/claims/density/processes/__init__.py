"""Claims of the family density.processes."""
