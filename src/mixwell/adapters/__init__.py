"""Changes beside a frozen model: of its weights, of its activations, of its routing."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
