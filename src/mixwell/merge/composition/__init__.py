"""Compositions of models that keep their parts, or train them so that they compose."""

from mixwell.core.registry import room_names

__getattr__, __dir__ = room_names(__name__)
