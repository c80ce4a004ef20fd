"""Claims of the data room."""
