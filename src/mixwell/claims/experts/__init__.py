"""Claims of the experts room."""
