"""SparseMixer: sampled top-1 routing whose gradient counts what the choice itself does to the loss.

**Equation:** D ~ pi = softmax(W x);  y = a pi_D E_D(x), the gradient of a pi_D with respect to pi_D taken as 2;
    a = 1 or 1/2 with equal chance, but a = 1 where D = argmax pi (if `euler_at_best`).
    With a = 1/2 this estimates sum_i grad(pi_i) (f(pi_i E_i) - f(0)) by the mid-point rule, exact for quadratic f; with
    a = 1 it adds the gradient through the weight. At inference D = argmax pi, a = 1.
    Experts that jitter of r cannot bring to the top are out: (max h - h_i) / max(|h_i|, max h) > 2 r.
**Shapes:** x [T, D], W [E, D], indices and weights [T, 1], scores [T, E].
**Reference:** Liu et al. 2023 (2310.00811), eq. 8-10 and section 3.3, with its authors' code.
**Differs:** the code's learnt scale of the output (omega, a vector of width D) is the layer's matter and not here. One
    expert a token; the second version for two experts is another paper's. W starts normal with std 0.02.
**Fails when:** halved outputs of the unlikely experts disturb layers above without a residual path beside them.
**Cost:** as top-1: one expert a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, draws
from mixwell.mixing import check_above


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of SparseMixer."""

    jitter: float = 0.1  # r, reach of the sampling in relative logit distance, above 0; inf: all experts
    euler_at_best: bool = True  # whole outputs wherever the likeliest expert was drawn, as the paper does

    def __post_init__(self) -> None:
        check_above(self, jitter=0)


def reachable(logits_TE: Tensor, jitter: float) -> Tensor:
    """The experts that may be drawn, bool [T, E]: those within 2 * jitter of the best in relative distance."""
    h = logits_TE.detach()
    best = h.amax(-1, keepdim=True)
    reach = 2 * jitter * torch.maximum(h.abs(), best)
    return (h == best) | (best - h <= reach)  # the best by itself, since inf times a logit of 0 is no number


def straight_through(scores_T1: Tensor, half_T1: Tensor) -> Tensor:
    """Weights [T, 1] with value pi_D or, where `half_T1`, pi_D / 2, and gradient 2 with respect to pi_D everywhere."""
    held = scores_T1.detach()
    return torch.where(half_T1, 0.5, 1.0) * held + 2 * (scores_T1 - held)


def route(logits_TE: Tensor, config: Config, generator: torch.Generator | None = None) -> Routing:
    """The routing that the logits [T, E] give: sampled with a generator, the likeliest expert without."""
    out_of_reach = ~reachable(logits_TE, config.jitter)
    masked = logits_TE.masked_fill(out_of_reach, float("-inf"))
    scores = masked.softmax(-1)
    best = logits_TE.detach().argmax(-1, keepdim=True)
    if generator is None:
        weights = scores.gather(-1, best)
        return Routing(best, weights, scores, logits_TE)
    drawn = torch.multinomial(scores.detach(), 1, generator=generator)
    coin = torch.rand(drawn.shape, generator=generator, device=drawn.device)
    half = coin < 0.5
    if config.euler_at_best:
        half = half & (drawn != best)
    chances = scores.gather(-1, drawn)
    weights = straight_through(chances, half)
    return Routing(drawn, weights, scores, logits_TE)


@method(
    title="SparseMixer",
    paper="Sparse Backpropagation for MoE Training",
    year=2023,
    tags={"token-choice", "batch-invariant"},
)
class SparseMixer(LinearRouter):
    """Sampled top-1 router with the mid-point gradient; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config or Config(), generator)

    @property
    def experts_per_token(self) -> float:
        """One."""
        return 1.0

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; while training, by sampling with the context's generator."""
        logits = self.logits(x_TD)
        generator = draws(context, self) if self.training else None
        return route(logits, self.config, generator)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
