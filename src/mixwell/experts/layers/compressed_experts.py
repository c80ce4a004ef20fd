"""Compressed experts: of the experts that a token activates only the first few run; the rest speak through vectors.

**Equation:** of the K activated experts the M of largest weight are main ones, the others auxiliary. Every expert e
    owns vectors v_e, u_e [D] and s_e [F], ones at the start. Over the auxiliary ones, with a_e = w_e / sum of their w:
    v = sum_e a_e v_e, u and s alike;  y = sum_{i main} w_i W_down^i (s * silu(W_gate^i (v * x)) * (W_up^i (u * x))).
**Shapes:** x [T, D]; gate_up_proj [E, 2 F, D]; down_proj [E, D, F]; into_gate, into_up [E, D]; hidden_scale [E, F].
**Reference:** He et al. 2025, Efficiently Editing Mixture-of-Experts Models with Compressed Experts (2503.00634), and
    their code for what the vectors multiply.
**Differs:** the code keeps three vectors of width D and cuts the third to F; here it is F wide, and F may exceed D. A
    token without auxiliary experts (a router that fills M slots at most) has ones. What auxiliary experts weigh is
    lost, as in the source: weights that sum to 1 over K sum to less over M.
**Fails when:** weights are even over the K: much is lost, which vectors of so few numbers do not bring back.
**Cost:** 6 T M D F FLOPs forward for the experts, 2 T D E for the router, 2 T (K - M) (2 D + F) for the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Plan, Routing, combine, dispatch, plan
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.mixing import (
    Mixed,
    apply_balance,
    build_balance,
    build_router,
    check_least,
    default_balance,
    normal_parameter,
    normalised,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of compressed experts."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert
    main: int = 1  # M: experts a token that run, at least 1
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # whose k is K
    # rule -> coefficient; default: switch 0.01 and z_loss 0.001, nothing for routers without logits
    balance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1, main=1)


def split_slots(routing: Routing, main: int) -> tuple[Routing, Routing]:
    """Each token's `main` slots of largest weight, and its other ones."""
    order = routing.weights_TK.argsort(dim=-1, descending=True, stable=True)
    first = order[:, :main]
    others = order[:, main:]
    return _slots(routing, first), _slots(routing, others)


def _slots(routing: Routing, places_TK: Tensor) -> Routing:
    indices = routing.indices_TK.gather(1, places_TK)
    weights = routing.weights_TK.gather(1, places_TK)
    return replace(routing, indices_TK=indices, weights_TK=weights)


def blended(share_TE: Tensor, vectors_EX: Tensor) -> Tensor:
    """sum_e a_e v_e of each token [T, X]; ones where a token has no shares, which else sum to 1."""
    from_ones = vectors_EX - 1
    return 1 + share_TE.to(vectors_EX.dtype) @ from_ones


@method(
    title="Compressed experts",
    paper="Efficiently Editing Mixture-of-Experts Models with Compressed Experts",
    year=2025,
    tags={"router", "tokenwise"},
)
class CompressedExperts(ChannelMixer):
    """A mixture whose lesser experts are vectors; see the module's card."""

    config: Config
    router: Any

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        experts = config.num_experts
        hidden = config.hidden_dim
        self.router = build_router(config.router, dim, experts, generator)
        rules = default_balance(self.router) if config.balance is None else config.balance
        self.balance = build_balance(rules)
        self.gate_up_proj = normal_parameter((experts, 2 * hidden, dim), generator)
        self.down_proj = normal_parameter((experts, dim, hidden), generator)
        self.into_gate = nn.Parameter(torch.ones(experts, dim))
        self.into_up = nn.Parameter(torch.ones(experts, dim))
        self.hidden_scale = nn.Parameter(torch.ones(experts, hidden))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the routing to main experts; balance losses see all that the router preferred."""
        preferred = self.router(x_TD, context)
        routing, auxiliary = split_slots(preferred, self.config.main)
        share_TE = normalised(auxiliary.dense_TE())
        order = plan(routing.indices_TK, self.config.num_experts)
        rows_ND = self._experts(x_TD, share_TE, order)
        y = combine(rows_ND, order, routing.weights_TK)
        losses, aux = apply_balance(self.balance, preferred, context)
        return Mixed(y, routing, losses, aux)

    def _experts(self, x_TD: Tensor, share_TE: Tensor, order: Plan) -> Tensor:
        """What main experts give for the rows of each, sorted by expert [N, D]."""
        counts = order.counts_E.tolist()
        to_gate = x_TD * blended(share_TE, self.into_gate)
        to_up = x_TD * blended(share_TE, self.into_up)
        scale = blended(share_TE, self.hidden_scale)
        inputs = [dispatch(each, order).split(counts) for each in (to_gate, to_up, scale)]
        outputs = [self._expert(e, *rows) for e, rows in enumerate(zip(*inputs))]
        return torch.cat(outputs)

    def _expert(self, e: int, to_gate_ND: Tensor, to_up_ND: Tensor, scale_NF: Tensor) -> Tensor:
        gate_FD, up_FD = self.gate_up_proj[e].chunk(2)
        gate = to_gate_ND @ gate_FD.T
        up = to_up_ND @ up_FD.T
        hidden = nn.functional.silu(gate) * up
        scaled = hidden * scale_NF
        return scaled @ self.down_proj[e].T

    def flops_per_token(self) -> float:
        """6 M D F for the experts, 2 D E for the router, 2 (K - M) (2 D + F) for the vectors."""
        c = self.config
        activated = self.router.experts_per_token
        main = min(float(c.main), activated)
        numbers = 2 * self.dim + c.hidden_dim
        vectors = 2.0 * (activated - main) * numbers
        experts = 6.0 * main * self.dim * c.hidden_dim
        routing = 2.0 * self.dim * c.num_experts
        return experts + routing + vectors


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six; two of the three activated experts run."""
    config = Config(num_experts=5, hidden_dim=7, main=2, router={"method": "top_k", "k": 3})
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
