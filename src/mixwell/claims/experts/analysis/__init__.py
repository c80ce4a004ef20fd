"""Claims of the family experts.analysis."""
