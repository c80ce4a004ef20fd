"""Claims of the family experts.overflow."""
