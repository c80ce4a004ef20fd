"""What a shell may complete (`mixwell --install-completion`): names from the catalogue, read without torch."""

from __future__ import annotations

from mixwell.core import registry

APPLIED = ("convert.", "precision.", "merge.", "experts.analysis.")  # what `mixwell apply` takes


def methods(incomplete: str) -> list[str]:
    """Methods whose full name starts so; where none does, last parts that do and belong to one method alone."""
    return _among([entry.name for entry in registry.entries()], incomplete)


def _among(names: list[str], incomplete: str) -> list[str]:
    full = [name for name in names if name.startswith(incomplete)]
    if full:
        return full
    last = [name.rpartition(".")[2] for name in names]
    fitting = [name for name in last if name.startswith(incomplete)]
    return [name for name in fitting if last.count(name) == 1]


def places(incomplete: str) -> list[str]:
    """Rooms and families that start so; where none does, methods."""
    fitting = [place for place in known_places() if place.startswith(incomplete)]
    return fitting or methods(incomplete)


def known_places() -> list[str]:
    """Every room and family."""
    found: set[str] = set()
    for entry in registry.entries():
        found |= {entry.room, entry.family}
    return sorted(found)


def applied(incomplete: str) -> list[str]:
    """As `methods`, of those that `mixwell apply` takes."""
    names = [entry.name for entry in registry.entries()]
    taken = [name for name in names if name.startswith(APPLIED)]
    return _among(taken, incomplete)
