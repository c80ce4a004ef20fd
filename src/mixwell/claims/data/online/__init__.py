"""Claims of rules that choose domains while a model trains."""
