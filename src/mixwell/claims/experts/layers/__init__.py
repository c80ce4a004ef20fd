"""Claims of the family experts.layers."""
