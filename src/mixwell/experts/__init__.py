"""Networks mixed in activation space: routers, expert layers, balance, and their analysis."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
