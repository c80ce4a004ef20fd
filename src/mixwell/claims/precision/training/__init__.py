"""Claims of the family serve.keeping."""
