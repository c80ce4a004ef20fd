"""What a shell may complete (`mixwell --install-completion`): names from the catalogue, read without torch."""

from __future__ import annotations

from mixwell.core import registry

APPLIED = ("convert.", "precision.", "experts.analysis.")  # what `mixwell apply` takes


def methods(incomplete: str) -> list[str]:
    """Methods whose full name starts so; where none does, last parts that do and belong to one method alone."""
    return _among([entry.name for entry in registry.entries()], incomplete)


def _among(names: list[str], incomplete: str) -> list[str]:
    full = [name for name in names if name.startswith(incomplete)]
    last = [name.rpartition(".")[2] for name in names]
    return full or [name for name in last if name.startswith(incomplete) and last.count(name) == 1]


def places(incomplete: str) -> list[str]:
    """Rooms and families that start so; where none does, methods."""
    found = sorted({e.room for e in registry.entries()} | {e.family for e in registry.entries()})
    return [place for place in found if place.startswith(incomplete)] or methods(incomplete)


def applied(incomplete: str) -> list[str]:
    """As `methods`, of those that `mixwell apply` takes."""
    return _among([entry.name for entry in registry.entries() if entry.name.startswith(APPLIED)], incomplete)
