"""The first and the last positions: a window that slides, and the few at the beginning on which attention rests.

**Equation:** of positions 1..S those up to `first` and those behind S - `last` stay, after every pass.
**Shapes:** keys and values [B, G, S, P].
**Reference:** Xiao et al. 2023 (2309.17453); textbook as a baseline.
**Differs:** positions keep the places in which they were read, where the paper counts them anew inside the window.
**Fails when:** the answer hangs on what stands between.
**Cost:** first + last positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.serve.keeping.rules import Kept, Rule, first_and_last


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the window."""

    first: int = 4
    last: int = 252

    def __post_init__(self) -> None:
        check_least(self, first=0, last=1)


@method(title="First and last positions", year=2023)
class Window(Rule):
    """Keeps the first and the last positions."""

    asks = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def prompt(self, weights_BGTS: Tensor, kept: Kept) -> Kept:
        """The first and the last of the prompt."""
        return self._cut(kept)

    def token(self, weights_BGS: Tensor, kept: Kept) -> Kept:
        """The oldest but the first ones goes."""
        return self._cut(kept)

    def _cut(self, kept: Kept) -> Kept:
        B, G, S, _ = kept.keys.shape
        places = first_and_last(S, self.config.first, self.config.last)
        return kept.at(places.expand(B, G, -1))


def example(generator: torch.Generator) -> dict[str, Any]:
    """A window of five positions."""
    return {"config": Config(first=1, last=4)}
