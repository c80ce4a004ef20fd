"""Regressions whose experts are weighted by gates, fitted by expectation-maximisation."""
