"""Claims of the serve room."""
