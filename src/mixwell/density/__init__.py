"""Densities mixed in probability space: mixture models, their fits, and what can be computed from them."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
