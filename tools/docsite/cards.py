"""A method's card taken apart: its one-line summary, what follows that, and the sections by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

SECTIONS = ("Equation", "Shapes", "Reference", "Differs", "Fails when", "Cost")
_HEAD = re.compile(r"^\*\*([A-Z][A-Za-z ]+):\*\*[ \t]*", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """A docstring card."""

    summary: str  # first paragraph
    more: str  # what stands between the summary and the sections
    sections: dict[str, str]  # Equation, Shapes, ... -> text as written


def parse(text: str, name: str) -> Card:
    """Take the card of the method `name` apart; a section that is missing raises `ValueError`."""
    opening, *rest = _HEAD.split(text)  # then title, text, title, text, ...
    titles, texts = rest[::2], rest[1::2]
    sections = {title: words.strip() for title, words in zip(titles, texts)}
    missing = [section for section in SECTIONS if not sections.get(section)]
    if missing:
        raise ValueError(f"{name}: the card lacks {', '.join(missing)}")
    summary, _, more = opening.strip().partition("\n\n")
    return Card(" ".join(summary.split()), more.strip(), sections)
