"""Sinkhorn routing: the choice follows a balanced transport plan while training, the plain scores at inference.

**Equation:** C = exp(beta h), h = W x [T, E];  repeat d0_t = 1 / (T sum_e d1_e C_te), d1_e = 1 / (E sum_t d0_t C_te)
    until d1 rests;  plan = d0 C d1 (rows sum to 1/T, columns to 1/E);  I_t = top-k of plan_t;  w_ti = sigmoid(h_ti) or
    softmax(h_t)_i.  Start of d1: warm 1 / (E sum_t C_te), or ones. At inference I_t = top-k of the scores.
**Shapes:** x [T, D], W [E, D], plan and scores [T, E], indices and weights [T, K].
**Reference:** Anthony et al. 2024, BlackMamba (2402.01771), with its authors' inference code (beta = 2, sigmoid gate,
    warm start); S-BASE in Clark et al. 2022 (2202.01169).
**Differs:** iterated on logarithms, so that large logits do not overflow; it rests when the mean change of log d1 is
    below `tolerance` (the authors: of d1 itself), and after `max_iterations` at the latest. Padding takes no part in
    the plan and goes by its scores. The plan carries no gradient, as in both papers. S-BASE from memory. W starts
    normal with std 0.02.
**Fails when:** used for very few tokens a batch, where balance means little; the choice differs between training and
    inference, so that a router that leans on the plan is unbalanced once it serves.
**Cost:** O(T E D) for the logits, O(T E) an iteration; a handful of iterations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter
from mixwell.mixing import check_above, check_k, check_least, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of Sinkhorn routing."""

    k: int = 1  # experts per token, 1 to E
    scores: Literal["sigmoid", "softmax"] = "sigmoid"  # from logits to the weight of a chosen expert
    sharpness: float = 2.0  # beta, factor on the logits in the plan, above 0; larger: nearer to the exact assignment
    start: Literal["warm", "ones"] = "warm"  # first d1
    tolerance: float = 1e-4  # mean change of log d1 at which the iteration rests, above 0
    max_iterations: int = 100  # at least 1

    def __post_init__(self) -> None:
        check_least(self, k=1, max_iterations=1)
        check_above(self, sharpness=0, tolerance=0)


def transport(logits_TE: Tensor, config: Config) -> tuple[Tensor, int]:
    """(log of the balanced plan [T, E], iterations taken); no gradient."""
    cost = config.sharpness * logits_TE.detach()
    tokens, experts = cost.shape
    if not tokens:
        return cost, 0
    log_d1 = cost.new_zeros(experts)
    if config.start == "warm":
        log_d1 = -cost.logsumexp(0) - math.log(experts)
    scaled = cost
    iterations = 0
    rests = False
    while not rests and iterations < config.max_iterations:
        before = log_d1
        log_d0 = -(cost + log_d1).logsumexp(1) - math.log(tokens)
        scaled = cost + log_d0.unsqueeze(1)
        log_d1 = -scaled.logsumexp(0) - math.log(experts)
        change = (log_d1 - before).abs().mean()
        rests = bool(change <= config.tolerance)
        iterations += 1
    return scaled + log_d1, iterations


def route(logits_TE: Tensor, config: Config, *, balanced: bool, mask_T: Tensor | None = None) -> Routing:
    """The routing that the logits [T, E] give, by the plan over tokens where `mask_T` is True if `balanced`."""
    if config.scores == "sigmoid":
        scores = logits_TE.sigmoid()
    else:
        scores = logits_TE.softmax(-1)
    order_by = logits_TE.detach()
    if balanced and mask_T is None:
        order_by, _ = transport(logits_TE, config)
    elif balanced and mask_T is not None:
        real, _ = transport(logits_TE[mask_T], config)
        order_by = order_by.clone()
        order_by[mask_T] = real
    indices, weights = select(scores, config.k, by_TE=order_by)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Sinkhorn",
    paper=("BlackMamba: Mixture of Experts for State-Space Models", "Unified Scaling Laws for Routed Language Models"),
    year=2022,
    tags={"token-choice", "batch-invariant", "exact-k", "dense-at-full-k"},
)
class Sinkhorn(LinearRouter):
    """Router balanced by a transport plan while it trains; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; by the balanced plan while training, by the scores otherwise."""
        logits = self.logits(x_TD)
        return route(logits, self.config, balanced=self.training, mask_T=context.mask_T)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
