"""Names of merges: a method's own, or a row of its table of published variants."""

from __future__ import annotations

from typing import Any

from mixwell.core import registry
from mixwell.core.errors import MixwellError, shown, suggest

ROOM = "merge"


def rows() -> dict[str, tuple[registry.Entry, dict[str, Any]]]:
    """Variant -> the method that it is a row of, and the options that the row sets."""
    found = {}
    for entry in registry.family(ROOM):
        if "ROWS" in entry.path.read_text(encoding="utf-8"):
            for name, options in getattr(entry.module(), "ROWS", {}).items():
                found[name] = entry, dict(options)
    return found


def method_of(name: str) -> tuple[registry.Entry, dict[str, Any]]:
    """The method that a name stands for, and the options that the name sets; an unknown one raises `MixwellError`."""
    prefix = f"{ROOM}."
    short = name.removeprefix(prefix)
    merges = [entry for entry in registry.family(ROOM) if entry.family == ROOM]
    known: dict[str, tuple[registry.Entry, dict[str, Any]]] = rows()
    known |= {entry.name.removeprefix(prefix): (entry, {}) for entry in merges}
    if short in known:
        return known[short]
    listed = ", ".join(sorted(known))
    raise MixwellError(f"unknown merge {shown(name)}.{suggest(short, known)} Known: {listed}.")
