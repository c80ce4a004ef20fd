"""Expert dropout: in training some experts cannot be chosen, all tokens alike or each token for itself.

**Equation:** S the surviving experts;  p = softmax or sigmoid(W x);  the k best experts of S.
    batch: floor((1 - rate) M) random members of each cluster of M experts survive, one draw for all tokens, and the
    softmax runs over survivors only.  token: each expert fails each token with probability `rate`; weights stay p_i.
**Shapes:** x [T, D]; W [E, D]; survivors [E] or [T, E]; weights [T, K].
**Reference:** Xie et al. 2022, MoEC (2207.09094), cluster-level expert dropout, and the authors' code; Csordas et al.
    2023 (2310.10837), section 5, expert dropout.
**Differs:** MoEC keeps one draw for an interval of updates; here every call draws. A token left with fewer than k
    experts has empty slots. W starts normal with std 0.02.
**Fails when:** so few experts survive that the balance rule fights the dropout.
**Cost:** O(T D E).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, draws
from mixwell.mixing import check_choice, check_k, empty, renormalises, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the router with expert dropout."""

    k: int = 2  # experts per token, 1 to the survivors
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever k > 1
    scores: Literal["softmax", "sigmoid"] = "softmax"  # from logits to scores
    rate: float = 0.1  # share of experts that fail in training, 0 up to 1
    over: Literal["batch", "token"] = "batch"  # one draw for all tokens, or one each
    clusters: int = 1  # batch: the rate holds inside each of this many equal clusters

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise)
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate is {self.rate}; expected 0 up to 1")
        over = self.over
        clusters = self.clusters
        most = 1 if over == "token" else clusters
        if clusters < 1 or clusters > most:
            raise ValueError(f"clusters is {clusters} over {over}; expected at least 1, and 1 over token")


def left_over(size: int, rate: float) -> int:
    """Members of a cluster of `size` that survive: (1 - rate) size, rounded down."""
    return math.floor((1 - rate) * size + 1e-9)


def survivors(num_experts: int, num_tokens: int, config: Config, generator: torch.Generator) -> Tensor:
    """Which experts survive: bool [1, E] (batch) or [T, E] (token)."""
    if config.over == "token":
        draw = torch.rand(num_tokens, num_experts, generator=generator, device=generator.device)
        return draw >= config.rate
    size = num_experts // config.clusters
    draw = torch.rand(config.clusters, size, generator=generator, device=generator.device)
    kept = draw.topk(left_over(size, config.rate), dim=-1).indices
    nobody = torch.zeros_like(draw, dtype=torch.bool)
    return nobody.scatter(1, kept, True).view(1, -1)


def route(logits_TE: Tensor, config: Config, alive: Tensor | None = None) -> Routing:
    """The routing of logits [T, E] among the surviving experts (bool [1, E] or [T, E]; None: all)."""
    alive_TE = torch.ones_like(logits_TE, dtype=torch.bool)
    if alive is not None:
        alive_TE = alive.expand_as(logits_TE)
    dead_TE = ~alive_TE
    if config.scores == "sigmoid":
        scores = logits_TE.sigmoid()
    elif config.over == "batch":  # the softmax runs over survivors only
        scores = logits_TE.masked_fill(dead_TE, float("-inf")).softmax(-1)
    else:
        scores = logits_TE.softmax(-1)
    order_by = scores.masked_fill(dead_TE, -1)
    renormalise = renormalises(config.k, config.renormalise)
    indices, weights = select(scores.masked_fill(dead_TE, 0), config.k, by_TE=order_by, renormalise=renormalise)
    indices, weights = empty(indices, weights, dead_TE.gather(-1, indices))
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Top-k with expert dropout",
    paper=(
        "MoEC: Mixture of Expert Clusters",
        "Approximating Two-Layer Feedforward Networks for Efficient Transformers",
    ),
    year=2022,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex"},
)
class ExpertDropout(LinearRouter):
    """Top-k router whose experts drop out in training; in evaluation it is the plain top-k router."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        size, rest = divmod(num_experts, config.clusters)
        if rest:
            raise ValueError(f"{num_experts} experts do not divide into {config.clusters} clusters")
        left = config.clusters * left_over(size, config.rate)
        if config.over == "batch" and left < config.k:
            raise ValueError(f"{left} of {num_experts} experts survive rate {config.rate}; expected at least k = "
                             f"{config.k}: lower the rate or the number of clusters")
        super().__init__(dim, num_experts, config, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; draws only when training."""
        alive = None
        if self.training and self.config.rate:
            generator = draws(context, self)
            alive = survivors(self.num_experts, len(x_TD), self.config, generator)
            alive = alive.to(x_TD.device)
        return route(self.logits(x_TD), self.config, alive)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts of which one drops out."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(rate=0.25), "x_TD": x_TD}
