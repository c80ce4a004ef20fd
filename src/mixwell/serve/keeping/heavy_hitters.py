"""Heavy hitters: the positions that were looked at most so far, and the last ones.

**Equation:** s_j = sum of the weights with which all queries so far looked at j. After each pass the last r positions
    and, of the others, the b - r with the largest s stay; s goes on with those.
**Shapes:** keys and values [B, G, S, P]; s [B, G, S].
**Reference:** Zhang et al. 2023, H2O (2306.14048), algorithm 1.
**Differs:** heads that share keys share their choice, by the mean of their weights.
**Fails when:** sums favour early positions, which more queries saw, over later ones that matter more.
**Cost:** b positions; to see the weights attention is computed S / P times more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.serve.keeping.rules import Kept, Rule, best_and_last


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of heavy hitters."""

    budget: int = 256  # b, positions that stay
    recent: int = 128  # r, of these the last ones

    def __post_init__(self) -> None:
        check_least(self, recent=1)
        if self.budget < self.recent:
            raise ValueError(f"budget is {self.budget}; expected at least recent, {self.recent}")


@method(title="Heavy hitters", year=2023)
class HeavyHitters(Rule):
    """Keeps what was looked at most."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.scores_BGS: Tensor

    def prompt(self, weights_BGTS: Tensor, kept: Kept) -> Kept:
        """By the sums over all queries of the prompt."""
        self.scores_BGS = weights_BGTS.sum(2)
        return self._cut(kept)

    def token(self, weights_BGS: Tensor, kept: Kept) -> Kept:
        """With the weights of one query more."""
        last_BG1 = self.scores_BGS[..., :1]
        fresh_BG1 = torch.zeros_like(last_BG1)
        before = torch.cat([self.scores_BGS, fresh_BG1], -1)
        self.scores_BGS = before + weights_BGS
        return self._cut(kept)

    def _cut(self, kept: Kept) -> Kept:
        recent = self.config.recent
        best = self.config.budget - recent
        places = best_and_last(self.scores_BGS, best, recent)
        self.scores_BGS = self.scores_BGS.gather(2, places)
        return kept.at(places)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five positions, the last two of them always."""
    return {"config": Config(budget=5, recent=2)}
