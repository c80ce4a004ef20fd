"""Claims of methods of clients that learn together."""
