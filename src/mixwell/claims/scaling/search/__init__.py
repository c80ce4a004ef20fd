"""Claims of the searches over configurations."""
