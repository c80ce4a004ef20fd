"""Scaling laws on one contract: a table of runs in; parameters, predictions with intervals and optima out."""
