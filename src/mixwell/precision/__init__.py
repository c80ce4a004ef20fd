"""Bit widths mixed under a budget: quantisers and the allocation of bits."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
