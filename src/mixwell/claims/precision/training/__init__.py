"""Claims on training in few bits."""
