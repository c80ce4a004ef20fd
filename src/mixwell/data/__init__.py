"""Which text to train on: mixtures of domains from small runs, and rules that choose while training."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
