"""Claims of the family experts.balance."""
