"""Drafts by look-up: what followed the last tokens where they stood before in the row is guessed to follow again.

**Equation:** for m = most..least: the latest place p < t with x_{p-m+1..p} = x_{t-m+1..t}; the guesses are
    x_{p+1}, .., x_{p+w}. The first m that has one decides.
**Shapes:** ids are lists.
**Reference:** textbook; known as prompt look-up decoding, and as the n-gram drafts of serving engines.
**Differs:** none.
**Fails when:** the text does not repeat itself: then nothing is guessed and nothing is lost.
**Cost:** O(most t) comparisons a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of look-up."""

    most: int = 3  # tokens that must agree, tried first, 1 or more
    least: int = 2  # tokens that must agree, tried last, 1 to most
    width: int = 6  # w: guesses at most, 1 or more

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least is {self.least} and most is {self.most}; expected 1 <= least <= most")
        if self.width < 1:
            raise ValueError(f"width is {self.width}; expected 1 or more")


def continuation(ids: Sequence[int], size: int, width: int) -> list[int]:
    """What followed the last `size` ids at the latest place where they stood before, at most `width` ids."""
    last = list(ids[-size:])
    for end in range(len(ids) - 1, size - 1, -1):
        if list(ids[end - size : end]) == last:
            return list(ids[end : end + width])
    return []


@method(title="Drafts by look-up in the row", year=2023)
class Lookup:
    """Guesses what a row says next from where it said the same before."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def draft(self, ids: Sequence[int], said: int, longest: int) -> list[int]:
        """Guesses for what follows `ids`, of which `said` are the answer so far."""
        left = longest - said - 1
        width = min(self.config.width, left)
        for size in range(self.config.most, self.config.least - 1, -1):
            found = continuation(ids, size, width) if width > 0 else []
            if found:
                return found
        return []

    def learn(self, predicted: Sequence[int], accepted: int) -> None:
        """Take in a pass; the row itself is all that is looked at."""


def example(generator: torch.Generator) -> dict[str, Any]:
    """Ids of a row that repeats itself."""
    drawn = torch.randint(0, 50, (5,), generator=generator)
    ids = drawn.tolist()
    again = ids[:3]
    row = ids + again
    return {"ids": row, "said": 2, "longest": 12}
