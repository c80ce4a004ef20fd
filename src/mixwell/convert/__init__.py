"""From dense models to mixtures and back, as functions from checkpoint to checkpoint."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
