"""Gaussian mixtures as values: algebra, modes, reduction and distances."""
