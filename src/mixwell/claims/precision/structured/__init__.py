"""Claims of structured matrices."""
