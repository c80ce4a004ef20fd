"""Many models into one: merges of weights, tensor by tensor, and mixtures of outputs."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
