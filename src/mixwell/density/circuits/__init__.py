"""Probabilistic circuits: deep mixtures whose integrals are computed exactly, layer by layer."""
