"""What the prompt's last queries look at: a choice made once, before the answer.

**Equation:** s_j = sum over the prompt's last w queries of the weights with which they look at j, j before them, the
    largest over the `pool` such positions around j. The last w positions and the b - w others with the largest s stay;
    what is answered is kept whole.
**Shapes:** keys and values [B, G, S, P]; s [B, G, S].
**Reference:** Li et al. 2024, SnapKV (2404.14469), section 4.
**Differs:** heads that share keys share their choice, by the mean of their weights.
**Fails when:** a later question asks for something else than the last queries looked for.
**Cost:** b positions and those of the answer; to see the weights attention is computed S / P times more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_least
from mixwell.serve.keeping.rules import Kept, Rule, best_and_last


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the last queries' choice."""

    budget: int = 256  # b, positions of the prompt that stay
    queries: int = 32  # w, the last ones
    pool: int = 5  # positions around each, an odd number

    def __post_init__(self) -> None:
        check_least(self, queries=1, pool=1)
        if self.budget < self.queries:
            raise ValueError(f"budget is {self.budget}; expected at least queries, {self.queries}")
        if self.pool % 2 == 0:
            raise ValueError(f"pool is {self.pool}; expected an odd number, as many positions on both sides")


@method(title="What the last queries look at", year=2024)
class LastQueries(Rule):
    """Keeps what the last queries of the prompt look at."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def prompt(self, weights_BGTS: Tensor, kept: Kept) -> Kept:
        """By the weights of the last queries."""
        config = self.config
        looked_BGS = weights_BGTS[:, :, -config.queries :].sum(2)
        looked_BGS[..., -config.queries :] = 0  # they look at themselves most, and stay anyway
        scores_BGS = F.max_pool1d(looked_BGS, config.pool, stride=1, padding=config.pool // 2)
        places = best_and_last(scores_BGS, config.budget - config.queries, config.queries)
        return kept.at(places)

    def token(self, weights_BGS: Tensor, kept: Kept) -> Kept:
        """All of the answer stays."""
        return kept


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five positions of the prompt."""
    return {"config": Config(budget=5, queries=2, pool=3)}
