"""Claims on training towards zeros."""
