"""Random routing: k experts drawn uniformly for each token, the baseline that a learnt router must beat.

**Equation:** training: I = k experts without replacement, w_i = 1 / k;
    inference: all experts with w_i = 1 / E ("all"), or drawn again ("draw").
**Shapes:** x [T, D], indices and weights [T, K], scores [T, E] (1 / E everywhere).
**Reference:** Zuo et al. 2021, THOR (2110.04260), section 3; random routing in Roller et al. 2021 (2106.04426).
**Differs:** THOR's consistency loss between two draws belongs to the training step and is not here.
**Fails when:** experts are to specialise: every expert learns from a uniform sample of the tokens.
**Cost:** O(T E) to draw; at inference with "all", E experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import draws
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_k, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of random routing."""

    k: int = 1  # experts per token, 1 to E
    inference: Literal["all", "draw"] = "all"  # average all experts, or draw k again

    def __post_init__(self) -> None:
        check_least(self, k=1)


def route(x_TD: Tensor, num_experts: int, k: int, generator: torch.Generator | None) -> Routing:
    """k experts drawn for each token; all of them without a generator."""
    x = wide(x_TD)
    shape = (len(x), num_experts)
    scores = x.new_full(shape, 1 / num_experts)
    if generator is None:
        every = torch.arange(num_experts, device=x.device)
        return Routing(every.expand(shape), scores, scores)
    draw = torch.rand(shape, generator=generator, device=x.device)
    best = draw.topk(k, dim=-1)
    indices = best.indices
    weights = x.new_full(indices.shape, 1 / k)
    return Routing(indices, weights, scores)


@method(
    title="Random top-k",
    paper="Taming Sparsely Activated Transformer with Stochastic Experts",
    year=2021,
    tags={"static", "token-choice", "batch-invariant", "simplex"},
)
class RandomTopK(Router):
    """Router that draws; see the module's card."""

    has_logits = False

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D], which it does not look at."""
        drawn = self.training or self.config.inference == "draw"
        generator = draws(context, self) if drawn else None
        return route(x_TD, self.num_experts, self.config.k, generator)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
