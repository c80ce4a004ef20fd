"""Positions mixed along a sequence: attention, scans and other mixers."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
