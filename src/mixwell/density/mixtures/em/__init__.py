"""Expectation-maximisation: rows read in pieces, kernels for the families, the loop, starts and online updates."""
