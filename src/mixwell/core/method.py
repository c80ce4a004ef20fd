"""`@method`: the mark that makes a file a method of the catalogue.

The decorator only attaches a card to the object; the name of a method is its path
(`mixwell/experts/routers/top_k.py` is `experts.routers.top_k`), and `mixwell.core.registry` finds it by reading the
decorator in the file's text. Its arguments must therefore be literals.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Card:
    """What a method says of itself."""

    name: str  # path below mixwell, dotted
    title: str  # a few words for lists
    papers: tuple[str, ...]  # exact titles of the papers it serves; empty where it is textbook matter
    year: int  # of the first paper
    tags: frozenset[str]  # properties that choose the checks of the contract suite


def method(*, title: str, paper: str | tuple[str, ...] = (), year: int,
           tags: Set[str] = frozenset()) -> Callable[[T], T]:
    """Mark the one public object (class or function) of a method file.

    title: a few words; paper: the exact title or titles served; year: of publication; tags: see the family's page.
    """
    papers = (paper,) if isinstance(paper, str) else tuple(paper)

    def mark(target: T) -> T:
        name = str(getattr(target, "__module__", "")).removeprefix("mixwell.")
        target.__mixwell__ = Card(name, title, papers, year, frozenset(tags))  # type: ignore[attr-defined]
        return target

    return mark


def card(target: Any) -> Card:
    """Return the card of a method's object (or of an instance of its class)."""
    return target.__mixwell__
