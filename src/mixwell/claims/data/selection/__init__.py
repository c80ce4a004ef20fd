"""Claims of rules that select examples."""
