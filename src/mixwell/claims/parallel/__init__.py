"""Claims of methods of the room parallel."""
