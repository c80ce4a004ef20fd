"""The rooms of the house, lowest first: the one list that the catalogue, the cache keys and the tests read.

A room imports rooms of lower levels only; two rooms of one level meet through a contract in `core` or `mixing`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """A folder of the package."""

    name: str
    level: int
    methods: bool = False  # whether its files can be methods of the catalogue
    computes: bool = False  # whether a model's numbers and speed come from its code


ROOMS = (
    Room("core", 0, computes=True),
    Room("formats", 1, computes=True),
    Room("kernels", 1, computes=True),
    Room("mixing", 2, computes=True),
    Room("transformers", 2),
    Room("density", 3, methods=True),
    Room("experts", 3, methods=True, computes=True),
    Room("sequence", 3, methods=True, computes=True),
    Room("merge", 3, methods=True),
    Room("augment", 3, methods=True),
    Room("precision", 3, methods=True, computes=True),
    Room("optim", 3, methods=True),
    Room("scaling", 3, methods=True),
    Room("unmix", 3, methods=True),
    Room("convert", 4, methods=True, computes=True),
    Room("adapters", 4, methods=True),
    Room("data", 4, methods=True),
    Room("generate", 4, methods=True),
    Room("learn", 4, methods=True),
    Room("parallel", 4, methods=True),
    Room("lm", 5, computes=True),
    Room("domain", 5, methods=True),
    Room("serve", 6, methods=True),
    Room("report", 7),
    Room("tables", 8),
    Room("run", 8),
    Room("compare", 9),
    Room("claims", 9),
    Room("cli", 10),
)
LEVELS = {room.name: room.level for room in ROOMS}


def holding_methods() -> frozenset[str]:
    """Names of the rooms whose files can be methods."""
    return frozenset(room.name for room in ROOMS if room.methods)


def computing() -> tuple[str, ...]:
    """Names of the rooms that a model's numbers and speed come from."""
    return tuple(room.name for room in ROOMS if room.computes)


def foundation() -> tuple[str, ...]:
    """Names of the computing rooms below all methods: whatever computes may stand on them."""
    least = min(room.level for room in ROOMS if room.methods)
    return tuple(room.name for room in ROOMS if room.computes and room.level < least)
