"""Clusterings that are mixtures with something more: labels, topics, or a convex relaxation."""
