"""Several router rows for one expert: what is left of a router when experts were merged and their rows kept.

**Equation:** h = W x over R rows;  p = softmax(h) or sigmoid(h);  I = top-k of p;  w_r = p_r, or p_r over the sum of
    those in I; expert m(r) of row r gets the sum of w_r over the chosen rows that lead to it.
**Shapes:** x [T, D]; W [R, D]; m [R]; indices and weights [T, K]; scores [T, E], the sum over each expert's rows.
**Reference:** Chen et al. 2024, HC-SMoE (2410.08589), section 3; Li et al. 2023, MC-SMoE (2310.01334), section 3.2: in
    both the router stays as it was.
**Differs:** an expert chosen twice is computed once with both weights; the logits that balance rules see are the
    logarithms of the scores.
**Fails when:** never by itself; the load follows the sizes of the groups.
**Cost:** O(T R D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import project
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_above, check_choice, empty, normal_parameter, renormalises, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of rows that share experts."""

    members: tuple[int, ...]  # m: the expert of each row
    k: int = 2  # rows per token, 1 to R
    scores: Literal["softmax", "sigmoid"] = "softmax"  # from logits to scores
    renormalise: bool | None = None  # weights of a token sum to 1; default: wherever k > 1
    scale: float = 1.0  # factor on the weights, above 0
    constant: bool = False  # k = 1 may be renormalised: a weight of 1 always

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise and not self.constant)
        check_above(self, scale=0)
        if self.k > len(self.members):
            raise ValueError(f"k is {self.k} with {len(self.members)} rows; expected no more than there are")


def joined(indices_TK: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Slots of one token with the same expert become one with all their weight, the others empty."""
    same_TKK = indices_TK.unsqueeze(2) == indices_TK.unsqueeze(1)
    total_TK = (same_TKK * weights_TK.unsqueeze(1)).sum(2)
    again_TK = same_TKK.tril(-1).any(2)
    return empty(indices_TK, total_TK, again_TK)


def route(rows_TR: Tensor, config: Config, num_experts: int) -> Routing:
    """The routing that the rows' logits [T, R] give."""
    p = rows_TR.softmax(-1) if config.scores == "softmax" else rows_TR.sigmoid()
    renormalise = renormalises(config.k, config.renormalise)
    rows_TK, weights_TK = select(p, config.k, renormalise=renormalise, scale=config.scale)
    members_R = torch.tensor(config.members, device=p.device)
    indices_TK, weights_TK = joined(members_R[rows_TK], weights_TK)
    nothing = p.new_zeros(len(p), num_experts)
    scores_TE = nothing.index_add(1, members_R, p)
    tiny = torch.finfo(p.dtype).tiny
    return Routing(indices_TK, weights_TK, scores_TE, scores_TE.clamp_min(tiny).log())


@method(
    title="Several rows for one expert",
    paper="Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy",
    year=2023,
    tags={"token-choice", "batch-invariant"},
)
class ManyToOne(Router):
    """Top-k router whose rows lead to fewer experts; see the module's card."""

    config: Config

    def __init__(self, dim: int, num_experts: int, config: Config,
                 generator: torch.Generator | None = None) -> None:
        super().__init__(dim, num_experts, config, generator)
        members = config.members
        if min(members) < 0 or max(members) >= num_experts:
            raise ValueError(f"members name experts {min(members)} to {max(members)} of {num_experts}; expected 0 to "
                             f"{num_experts - 1}")
        self.weight = normal_parameter((len(members), dim), generator)

    @property
    def experts_per_token(self) -> float:
        """The most that a token visits."""
        return float(min(self.config.k, self.num_experts))

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]."""
        logits_TR = project(wide(x_TD), self.weight)
        return route(logits_TR, self.config, self.num_experts)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, six rows for four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    config = Config(members=(0, 1, 1, 2, 3, 0))
    return {"dim": 6, "num_experts": 4, "config": config, "x_TD": x_TD}
