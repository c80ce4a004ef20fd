"""The methods with what came of their claims, and where their pages lie."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from docsite.evidence import Claim
from mixwell.core.registry import Entry

FOLDER = "methods"  # of the site
UNTRIED = "not tried"


@dataclass(frozen=True)
class Catalogue:
    """The methods with what is known of each."""

    entries: tuple[Entry, ...]
    evidence: Mapping[str, Mapping[str, Claim]]  # method -> its claims by name

    def __contains__(self, name: object) -> bool:
        return name in self.evidence

    def outcomes(self, name: str) -> list[str]:
        """The different outcomes of a method's claims, as written there."""
        found = [claim["outcome"] for claim in self.evidence[name].values()]
        return list(dict.fromkeys(found)) or [UNTRIED]

    def below(self, prefix: str) -> list[Entry]:
        """The methods of a room or a family, those of its families too."""
        start = f"{prefix}."
        return [entry for entry in self.entries if entry.name.startswith(start)]

    def members(self, family: str) -> list[Entry]:
        """The methods that stand directly in a room or a family."""
        return [entry for entry in self.entries if entry.family == family]

    def families(self, room: str) -> list[str]:
        """The families of a room, itself where methods stand in it directly."""
        return sorted({entry.family for entry in self.below(room)})

    def rooms(self) -> list[str]:
        """The rooms that hold methods."""
        return sorted({entry.room for entry in self.entries})

    def groups(self) -> list[str]:
        """Rooms and families, each once."""
        families = {entry.family for entry in self.entries}
        return sorted(families.union(self.rooms()))

    def claims(self, prefix: str) -> list[Claim]:
        """The claims of all methods of a room or a family."""
        return [claim for entry in self.below(prefix) for claim in self.evidence[entry.name].values()]


def source_path(name: str) -> str:
    """Where a method's page lies in the site's sources."""
    return group_path(name).replace("/index.md", ".md")


def group_path(name: str) -> str:
    """Where the page of a room or a family lies."""
    return posixpath.join(FOLDER, *name.split("."), "index.md")


def claims_path(room: str) -> str:
    """Where the page of a room's claims lies."""
    return f"claims/{room}.md"


def link(origin: str, target: str) -> str:
    """The link from one page to another, both as source paths."""
    folder = posixpath.dirname(origin)
    return posixpath.relpath(target, folder)


def href(origin: str, target: str) -> str:
    """The same for links in HTML, which are not rewritten by the site's builder."""
    path = link(origin, target)
    return path.removesuffix(".md") + ".html"
