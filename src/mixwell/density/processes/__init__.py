"""Mixtures of random functions and of weighted particles: Gaussian processes, filters."""
