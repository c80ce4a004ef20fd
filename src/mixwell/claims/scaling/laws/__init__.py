"""Claims of laws of scale."""
