"""Mixtures learned from data that lack something: a component, a region, or the right to be shown."""
