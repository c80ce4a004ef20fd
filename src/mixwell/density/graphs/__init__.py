"""Labels and states joined in graphs, summed out by messages along their edges."""
