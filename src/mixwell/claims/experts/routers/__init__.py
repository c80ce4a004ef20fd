"""Claims of the family experts.routers."""
