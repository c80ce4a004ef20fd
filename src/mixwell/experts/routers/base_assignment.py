"""BASE routing: tokens are assigned to experts by an exactly balanced linear assignment while training.

**Equation:** maximise sum_t h_t . w_{a_t} over assignments a in which no expert has more than C = ceil(T / E) tokens;
    y_t = sigmoid(h_t . w_{a_t}) E_{a_t}(h_t);  at inference a_t = argmax_e h_t . w_e.
**Shapes:** h = x [T, D], w [E, D], indices and weights [T, 1], scores [T, E] (sigmoid of the affinities).
**Reference:** Lewis et al. 2021, BASE Layers (2103.16716), eq. 1-3; auction algorithm for similar objects after
    Bertsekas and Castanon 1989, with scaling of epsilon.
**Differs:** the auction runs until every token is placed, and loses at most `tolerance` times the range of the
    affinities a token against the optimum (the authors' stops after 100 rounds and fills up greedily). T need not be
    divisible by E: empty tokens fill up. One process: no shuffling over workers. Padding goes by its affinities.
**Fails when:** batches are far from evenly mixed: balance is forced on each, and the choice at inference differs.
**Cost:** O(T E D) for the affinities; O(T E + T log T) a round, tens to some hundreds of rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of BASE routing."""

    tolerance: float = 0.01  # largest loss of affinity a token against the optimum, as a share of the range; 1e-6 to 1

    def __post_init__(self) -> None:
        if not 1e-6 <= self.tolerance <= 1:
            raise ValueError(f"tolerance is {self.tolerance}; expected 1e-6 to 1")


def balanced_assignment(affinity_TE: Tensor, tolerance: float) -> Tensor:
    """The expert of each token, int64 [T], with at most ceil(T / E) tokens an expert.

    The summed affinity is within C E * tolerance * (max - min) of the best there is, max and min taken once what a
    whole row or column shares is subtracted. Deterministic; no gradient; raises `ValueError` on NaN or infinity.
    """
    tokens, experts = affinity_TE.shape
    if not tokens or experts == 1:
        return torch.zeros(tokens, dtype=torch.int64, device=affinity_TE.device)
    value = affinity_TE.detach().double()
    if not torch.isfinite(value).all():
        raise ValueError("the affinities hold values that are not finite; look for the step at which training diverged")
    slots = -(-tokens // experts)
    padding = value.new_zeros(slots * experts - tokens, experts)
    value = torch.cat((value, padding))
    # what all tokens or all experts share changes no assignment, only the range
    value = value - value.mean(0)
    value = value - value.mean(1, keepdim=True)
    spread = float(value.max() - value.min()) or 1.0
    price = value.new_zeros(experts)
    epsilon = max(0.25, tolerance)
    while True:
        expert, price = _auction(value, price, slots, epsilon * spread)
        if epsilon <= tolerance:
            return expert[:tokens]
        epsilon = max(epsilon / 5, tolerance)  # the prices of a coarse auction make the finer one short


def _auction(value_TE: Tensor, price_E: Tensor, slots: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """One auction from start prices: unplaced tokens bid for their best expert, which keeps its `slots` best bids."""
    tokens, experts = value_TE.shape
    expert = value_TE.new_full((tokens,), experts, dtype=torch.int64)  # `experts` marks a token without a place
    bid = value_TE.new_zeros(tokens)
    price = price_E.clone()
    while True:
        free = (expert == experts).nonzero().squeeze(1)
        if not free.numel():
            return expert, price
        gain, best = (value_TE[free] - price).topk(2, dim=-1)
        first, second = gain.unbind(1)
        favourite = best[:, 0]
        expert[free] = favourite
        # a bid gives up the gain over the second best; epsilon more, so that equals do not bid for ever
        bid[free] = price[favourite] + first - second + epsilon
        _settle(expert, bid, price, slots)


def _settle(expert_T: Tensor, bid_T: Tensor, price_E: Tensor, slots: int) -> None:
    """Each expert keeps its `slots` best bids, the others lose their place; a full one asks its lowest. In place."""
    experts = len(price_E)
    by_bid = bid_T.argsort(descending=True, stable=True)
    order = by_bid[expert_T[by_bid].argsort(stable=True)]  # expert by expert, best bid first
    owner = expert_T[order]
    counts = torch.bincount(owner, minlength=experts)[:experts]
    first = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device)
    place = rank - first[owner]
    expert_T[order[place >= slots]] = experts
    full = counts >= slots
    last_kept = first + slots - 1
    lowest = order[last_kept[full]]
    price_E[full] = bid_T[lowest]


@method(
    title="BASE balanced assignment",
    paper=(
        "BASE Layers: Simplifying Training of Large, Sparse Models",
        "A Review of Sparse Expert Models in Deep Learning",
    ),
    year=2021,
    tags={"token-choice", "batch-invariant"},
)
class BaseAssignment(LinearRouter):
    """Router with an exactly balanced assignment while it trains, greedy at inference; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config or Config(), generator)
        nn.init.orthogonal_(self.weight, gain=0.1, generator=generator)

    @property
    def experts_per_token(self) -> float:
        """One."""
        return 1.0

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; balanced while training, each to its best expert otherwise."""
        logits = self.logits(x_TD)
        expert = logits.detach().argmax(-1)
        if self.training:
            mask = context.mask_T
            real = slice(None) if mask is None else mask
            expert[real] = balanced_assignment(logits[real], self.config.tolerance)
        scores = logits.sigmoid()
        indices = expert.unsqueeze(-1)
        weights = scores.gather(-1, indices)
        return Routing(indices, weights, scores, logits)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
