"""Cartesian product of experts: two sparse mixtures in series, so that each pair of their experts acts as one expert.

**Equation:** y = B(norm(x + A(x))),  A(x) = sum_{i in I(x)} w_i A_i(x) + A_shared(x), and B alike with experts of its
    own: the pair (i, j) computes B_j(norm(x + A_i(x))) and shares A_i with its row, B_j with its column.
**Shapes:** x [T, D]; first.gate_up_proj, second.gate_up_proj [E, 2 F, D]; E^2 pairs from 2 E experts.
**Reference:** Su et al. 2024, CartesianMoE (2410.16077), section 3.
**Differs:** where the residual and the norm stand is taken from summaries of the paper; the norm is by root mean
    square. Both halves are `experts.layers.moe`; the routing that comes back lists the experts of A, then those of B.
    A(x) reaches the output through B alone: the last residual, which is the caller's, adds the layer's own input, as a
    summary of the paper has it.
**Fails when:** the two routers learn the same partition of the tokens; few of the E^2 pairs are then used.
**Cost:** twice that of a sparse mixture: 12 T D (k F + F_shared) + 4 T D E FLOPs forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core import registry
from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.mixing import Mixed, check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the Cartesian product; each holds for both mixtures."""

    num_experts: int  # E, of each mixture; there are E^2 pairs
    hidden_dim: int  # F, of each expert
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})
    # rule -> coefficient; default: switch 0.01 and z_loss 0.001, nothing for routers without logits
    balance: Mapping[str, Any] | None = None
    shared_experts: int = 1  # experts in each mixture that see every token, 0 or more
    shared_hidden_dim: int | None = None  # width of each shared expert; default hidden_dim
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1, shared_experts=0)
        check_above(self, norm_eps=0)


def in_series(first: Routing, second: Routing) -> Routing:
    """One routing over the experts of both: slots and scores side by side, those of `second` after those of `first`."""
    filled = second.indices_TK >= 0
    later = torch.where(filled, second.indices_TK + first.num_experts, -1)
    indices = torch.cat([first.indices_TK, later], 1)
    weights = torch.cat([first.weights_TK, second.weights_TK], 1)
    scores = torch.cat([first.scores_TE, second.scores_TE], 1)
    return Routing(indices, weights, scores)


def pair_load(routing: Routing, num_experts: int) -> Tensor:
    """How many tokens took each pair of experts, int64 [E, E], from a routing that `in_series` made."""
    indices = routing.indices_TK
    width = 2 * num_experts + 1  # the first column takes the empty slots, index -1
    nothing = torch.zeros(len(indices), width, dtype=torch.float64, device=indices.device)
    taken = nothing.scatter(1, indices + 1, 1.0)
    first, second = taken[:, 1:].split(num_experts, dim=1)
    return (first.T @ second).long()


@method(
    title="Cartesian product of experts",
    paper="CartesianMoE: Boosting Knowledge Sharing among Experts via Cartesian Product Routing in Mixture-of-Experts",
    year=2024,
    tags={"router", "tokenwise"},
)
class CartesianMoE(ChannelMixer):
    """Two sparse mixtures in series; see the module's card."""

    config: Config
    first: Any
    second: Any

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        entry = registry.find("moe", "experts.layers")
        half = entry.module().Config(
            num_experts=config.num_experts,
            hidden_dim=config.hidden_dim,
            router=config.router,
            balance=config.balance,
            shared_experts=config.shared_experts,
            shared_hidden_dim=config.shared_hidden_dim,
        )
        self.first = entry.load()(dim, half, generator)
        self.norm_weight = nn.Parameter(self.first.down_proj.new_ones(dim))
        self.second = entry.load()(dim, half, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; losses are means over both mixtures, their sum enters `aux`."""
        a = self.first(x_TD, context)
        weight = self.norm_weight.to(x_TD.dtype)
        between = F.rms_norm(x_TD + a.y_TD, (self.dim,), weight, self.config.norm_eps)
        b = self.second(between, context)
        routing = in_series(a.routing, b.routing)
        losses = {name: (loss + b.losses[name]) / 2 for name, loss in a.losses.items()}
        aux = None if a.aux is None else a.aux + b.aux
        return Mixed(b.y_TD, routing, losses, aux)

    def flops_per_token(self) -> float:
        """Those of both mixtures."""
        return self.first.flops_per_token() + self.second.flops_per_token()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, three by three experts, one shared expert in each half."""
    config = Config(num_experts=3, hidden_dim=5)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
