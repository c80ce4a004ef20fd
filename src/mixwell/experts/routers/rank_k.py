"""Weak routing by rank, and the contrast of strong and weak logits that decodes with the experts not chosen.

**Equation:** the experts of a token sorted by p = softmax(W x); only those at the given ranks are used.
    Self-contrast: z = (1 + beta) z_strong - beta z_weak over the tokens v with
    p_strong(v) >= alpha max p_strong, and minus infinity elsewhere.
**Shapes:** x [T, D]; W [E, D]; weights [T, number of ranks]; logits [.., V].
**Reference:** Shi et al. 2024, SCMoE (2405.14507), section 3, and the authors' code.
**Differs:** the authors' code renormalises always; here one rank alone keeps weight p unless `renormalise` is set, so
    that the router can also learn. W starts normal with std 0.02.
**Fails when:** strong and weak answers agree: the contrast then only sharpens.
**Cost:** O(T D E); decoding runs the network twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter
from mixwell.mixing import normalised, renormalises


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the routing by rank."""

    ranks: tuple[int, ...] = (2,)  # ranks used, 1 being the best expert; different, 1 to E
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever there is more than one rank

    def __post_init__(self) -> None:
        ranks = self.ranks
        different = len(set(ranks)) == len(ranks)
        if not ranks or min(ranks) < 1 or not different:
            raise ValueError(f"ranks are {list(ranks)}; expected at least one, all different, from 1 on")


def route(logits_TE: Tensor, config: Config) -> Routing:
    """The routing to the experts at the configured ranks, in the order given."""
    scores = logits_TE.softmax(-1)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    columns = [rank - 1 for rank in config.ranks]
    indices = order[:, columns]
    weights = scores.gather(-1, indices)
    if renormalises(len(columns), config.renormalise):
        weights = normalised(weights)
    return Routing(indices, weights, scores, logits_TE)


def contrast(strong: Tensor, weak: Tensor, *, alpha: float = 0.1, beta: float = 0.5) -> Tensor:
    """Self-contrast logits [.., V] from the logits of two passes of one network.

    alpha: plausibility bound, above 0 to 1; beta: strength of the penalty, 0 or more (0 is the strong pass alone).
    Raises `ValueError` for others.
    """
    plausible = 0 < alpha <= 1
    if not plausible or not beta >= 0:
        raise ValueError(f"alpha is {alpha} and beta is {beta}; expected alpha above 0 to 1, beta 0 or more")
    best = strong.amax(-1, keepdim=True)
    bound = best + math.log(alpha)
    z = (1 + beta) * strong - beta * weak
    return z.masked_fill(strong < bound, float("-inf"))


@method(
    title="Weak routing by rank, with self-contrast",
    paper="Unchosen Experts Can Contribute Too: Unleashing MoE Models' Power by Self-Contrast",
    year=2024,
    tags={"token-choice", "batch-invariant"},
)
class RankK(LinearRouter):
    """Sends each token to the experts at given ranks; takes the weight of a trained top-k router as it is."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        worst = max(config.ranks)
        if worst > num_experts:
            raise ValueError(f"rank {worst} of {num_experts} experts; choose ranks 1 to {num_experts}")
        super().__init__(dim, num_experts, config, generator)

    @property
    def experts_per_token(self) -> float:
        """The number of ranks."""
        return float(len(self.config.ranks))

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        return route(self.logits(x_TD), self.config)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
