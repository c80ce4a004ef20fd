"""Threshold routing: each token takes as many experts as it needs for a given share of its probability.

**Equation:** p = softmax(W x), sorted p_(1) >= p_(2) >= ...;  n = least n with sum_{i <= n} p_(i) >= t;
    y = sum_{i <= n} p_(i) E_(i)(x);  with a capacity C = ceil(c T / E), an expert keeps the C tokens that rank it
    highest.
**Shapes:** x [T, D], W [E, D], scores [T, E], indices and weights [T, K] with K the most experts any token took.
**Reference:** Yang et al. 2024, XMoE (2403.18926), section 3.2, with its authors' code for the capacity.
**Differs:** among tokens that give an expert the same rank the more probable one stays (the authors: any). Padding
    takes no capacity. Without a capacity factor nothing is dropped. `renormalise` divides by the mass that was kept. W
    starts normal with std 0.02.
**Fails when:** the router is flat: a token then takes nearly t E experts. An entropy loss keeps it sharp.
**Cost:** O(T E D + T E log E).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, capacity
from mixwell.mixing import normalised, to_slots


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of threshold routing."""

    threshold: float = 0.9  # t, share of the probability to reach, above 0 up to 1
    capacity_factor: float | None = None  # c, slots of an expert over T / E, above 0; none: no cap
    renormalise: bool = False  # weights of a token sum to 1

    def __post_init__(self) -> None:
        t = self.threshold
        factor = self.capacity_factor
        if not 0 < t <= 1:
            raise ValueError(f"threshold is {t}; expected above 0 up to 1")
        if factor is not None and not factor > 0:
            raise ValueError(f"capacity_factor is {factor}; expected a number above 0, or none")


def smallest_set(scores_TE: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """(the experts of each token's smallest set that reaches the threshold, bool; the rank of each expert) [T, E]."""
    values, order = scores_TE.sort(dim=-1, descending=True, stable=True)
    taken = torch.ones_like(values, dtype=torch.bool)
    if threshold < 1:  # the sum may round to 1 before the last expert
        reached = values.cumsum(-1)
        taken[:, 1:] = reached[:, :-1] < threshold
    nothing = torch.zeros_like(taken)
    chosen = nothing.scatter(-1, order, taken)
    return chosen, order.argsort(-1)


def cap(chosen_TE: Tensor, rank_TE: Tensor, scores_TE: Tensor, slots: int) -> Tensor:
    """`chosen_TE` with at most `slots` tokens an expert: those that rank it highest, then the more probable ones."""
    urgency = torch.where(chosen_TE, scores_TE - rank_TE, float("-inf"))
    most_urgent = urgency.argsort(dim=0, descending=True, stable=True)
    kept = most_urgent[:slots]
    nobody = torch.zeros_like(chosen_TE)
    served = nobody.scatter(0, kept, True)
    return chosen_TE & served


def route(logits_TE: Tensor, config: Config, mask_T: Tensor | None = None) -> Routing:
    """The routing that the logits [T, E] give."""
    scores = logits_TE.softmax(-1)
    values = scores.detach()
    chosen, rank = smallest_set(values, config.threshold)
    if config.capacity_factor is not None:
        tokens, experts = scores.shape
        if mask_T is not None:
            chosen = chosen & mask_T.unsqueeze(-1)
            tokens = int(mask_T.sum())
        slots = capacity(tokens, experts, config.capacity_factor)
        chosen = cap(chosen, rank, values, slots)
    indices, weights = to_slots(chosen, scores)
    if config.renormalise:
        weights = normalised(weights)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Threshold (top-p)",
    paper="Enhancing Efficiency in Sparse Models with Sparser Selection",
    year=2024,
    tags={"token-choice", "batch-invariant"},
)
class Threshold(LinearRouter):
    """Router with as many experts as reach a share of the probability; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config or Config(), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        return route(self.logits(x_TD), self.config, context.mask_T)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    config = Config(threshold=0.6)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD}
