"""Claims of what is rounded as it is computed."""
