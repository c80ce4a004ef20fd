"""Expert choice: each expert takes its best tokens, so that loads are equal by construction.

**Equation:** S = softmax(X W^T) over experts;  for each expert e: I_e = the C tokens with the largest S_te,
    C = ceil(c T / E);  y_t = sum_{e : t in I_e} S_te E_e(x_t).
**Shapes:** x [T, D], W [E, D], scores [T, E], indices and weights [T, K] with K the most experts any token got.
**Reference:** Zhou et al. 2022 (2202.09368), section 3.2.
**Differs:** the result is in token slots (-1 where a token was taken by fewer experts) instead of the paper's one-hot
    permutation. Padding is never taken and does not count in C. The variant with a cap on a token's experts (section
    3.3) is not here. W starts normal with std 0.02.
**Fails when:** used in an autoregressive model: whether a token is taken depends on later ones, and at one token a step
    every expert takes it. A token that nobody takes gets zeros.
**Cost:** O(T E D) for the logits, O(E T log C) for the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, capacity
from mixwell.mixing import to_slots


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of expert choice."""

    capacity_factor: float = 2.0  # c: experts per token on average, above 0, at most E

    def __post_init__(self) -> None:
        if not self.capacity_factor > 0:
            raise ValueError(f"capacity_factor is {self.capacity_factor}; expected a number above 0")


def route(logits_TE: Tensor, config: Config, mask_T: Tensor | None = None) -> Routing:
    """The routing that the logits [T, E] give; tokens where `mask_T` is False are taken by no expert."""
    tokens, experts = logits_TE.shape
    scores = logits_TE.softmax(-1)
    order_by = scores.detach()
    if mask_T is not None:
        tokens = int(mask_T.sum())
        order_by = order_by.masked_fill(~mask_T.unsqueeze(-1), -1)
    slots = capacity(tokens, experts, config.capacity_factor)
    best = order_by.topk(slots, dim=0).indices
    nothing = torch.zeros_like(scores, dtype=torch.bool)
    chosen = nothing.scatter(0, best, True)
    indices, weights = to_slots(chosen, scores)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Expert choice",
    paper="Mixture-of-Experts with Expert Choice Routing",
    year=2022,
)
class ExpertChoice(LinearRouter):
    """Router in which experts choose tokens; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        if config.capacity_factor > num_experts:
            raise ValueError(f"capacity_factor is {config.capacity_factor} with {num_experts} experts; a token can "
                             f"visit each expert once, so give at most {num_experts}")
        super().__init__(dim, num_experts, config, generator)

    @property
    def experts_per_token(self) -> float:
        """The capacity factor."""
        return float(self.config.capacity_factor)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        return route(self.logits(x_TD), self.config, context.mask_T)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
