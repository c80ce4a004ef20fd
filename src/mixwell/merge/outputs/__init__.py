"""Mixtures of what models say: probabilities, candidates' likelihoods, features, whole answers."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
