"""Claims of adapters."""
