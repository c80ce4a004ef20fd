"""Laws of loss over size, tokens and experts, fitted to runs and asked for the best model under a budget."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
