"""Multi-head mixture of experts: a token is split into sub-tokens, and each of them is routed by itself.

**Equation:** [z_1, ..., z_h] = W_head x;  o_j = sum_{i in I(z_j)} w_i(z_j) E_i(z_j);  y = W_merge [o_1, ..., o_h].
    Parity with a plain mixture of E experts of width F and k choices: with k' choices of E' experts of width F',
    4 D^2 + 6 k' D F' + 2 D E' = 6 k D F + 2 D E (FLOPs), and
    2 D^2 + E' (3 F' + 1) D / h = E (3 F + 1) D (parameters).
**Shapes:** x [T, D]; sub-tokens [T h, D / h]; gate_up_proj [E, 2 F, D / h]; down_proj [E, D / h, F];
    head_proj and merge_proj [D, D].
**Reference:** Wu et al. 2024, Multi-Head Mixture-of-Experts (2404.15045), section 3, and the authors' code; Huang et
    al. 2024, MH-MoE (2411.16205), section 3.
**Differs:** SwiGLU experts; no biases in the two maps; their first values are normal with the deviations of the
    authors' Xavier draws. E' and F' are searched over whole numbers, the router counted; the equations are derived
    here, not taken from the paper's tables.
**Fails when:** D / h is so small that a sub-token says little about where it should go.
**Cost:** 4 T D^2 + 6 T k D F + 2 T D E FLOPs forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.layers._parts import ChannelMixer, routed_swiglu
from mixwell.kernels.linear import linear
from mixwell.mixing import (
    Mixed,
    apply_balance,
    build_balance,
    build_router,
    check_least,
    default_balance,
    normal_parameter,
)

TOLERANCE = 0.02  # largest relative difference to the plain mixture in parameters and in FLOPs


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the multi-head mixture."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert
    heads: int = 2  # h, sub-tokens of a token, a divisor of D
    parity_k: int | None = None  # k of the plain mixture to equal in cost: num_experts and hidden_dim are then that
    # mixture's, and E' and F' follow from them; none: sizes as given
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # of sub-tokens
    # over sub-tokens, rule -> coefficient; default: switch 0.01 and z_loss 0.001, nothing for routers without logits
    balance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1, heads=1)
        if self.parity_k is not None and not 1 <= self.parity_k <= self.num_experts:
            raise ValueError(f"parity_k is {self.parity_k}; expected 1 to num_experts = {self.num_experts}")


def parity(dim: int, num_experts: int, hidden_dim: int, k: int, heads: int, own_k: float) -> tuple[int, int]:
    """(E', F') of a multi-head layer that costs what the plain mixture (num_experts, hidden_dim, k) costs.

    Raises `ValueError` where no whole numbers come within 2 % in parameters and in FLOPs.
    """
    parameters = num_experts * (3 * hidden_dim + 1) * dim
    products = (3 * k * hidden_dim + num_experts) * dim
    outer = 2 * dim**2
    best = (float("inf"), 0, 0)
    for width in range(1, hidden_dim + 1):
        each = (3 * width + 1) * dim / heads
        count = max(1, round((parameters - outer) / each))
        own_products = (2 * dim + 3 * own_k * width + count) * dim
        more_parameters = abs((outer + count * each) / parameters - 1)
        more_products = abs(own_products / products - 1)
        error = max(more_parameters, more_products)
        best = min(best, (error, count, width))
    error, count, width = best
    if error > TOLERANCE or count < own_k:
        raise ValueError(f"no multi-head layer of {heads} heads costs what {num_experts} experts of width {hidden_dim} "
                         f"with k = {k} cost at dim {dim}; the nearest is {error:.1%} off: widen the experts, or "
                         "change the router's k")
    return count, width


def split_context(context: Context, heads: int) -> Context:
    """The context of sub-tokens: what is known of a token holds for each of its `heads` parts."""
    names = [f.name for f in fields(context) if f.name.endswith("_T")]
    known = {name: getattr(context, name) for name in names}
    parts = {name: value.repeat_interleave(heads) for name, value in known.items() if value is not None}
    shape = context.batch_shape
    if shape is not None:
        shape = (shape[0], shape[1] * heads)
    return replace(context, batch_shape=shape, **parts)


def by_token(routing: Routing, heads: int) -> Routing:
    """The routing of sub-tokens as one of tokens: all their slots side by side, scores averaged, no logits."""
    (rows, k), experts = routing.indices_TK.shape, routing.num_experts
    tokens = rows // heads
    indices = routing.indices_TK.reshape(tokens, heads * k)
    weights = routing.weights_TK.reshape(tokens, heads * k)
    scores = routing.scores_TE.reshape(tokens, heads, experts).mean(1)
    return replace(routing, indices_TK=indices, weights_TK=weights, scores_TE=scores, logits_TE=None)


@method(
    title="Multi-head mixture of experts",
    paper=("Multi-Head Mixture-of-Experts", "MH-MoE:Multi-Head Mixture-of-Experts"),
    year=2024,
    tags={"router", "tokenwise"},
)
class MultiHeadMoE(ChannelMixer):
    """Mixture over sub-tokens between a head and a merge map; see the module's card."""

    config: Config
    router: Any
    packable = ("gate_up_proj", "down_proj")

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        part, rest = divmod(dim, config.heads)
        if rest:
            raise ValueError(f"dim {dim} does not divide into {config.heads} heads")
        experts = config.num_experts
        width = config.hidden_dim
        if config.parity_k is not None:
            sized: Any = build_router(config.router, part, experts, torch.Generator())
            own_k = sized.experts_per_token
            experts, width = parity(dim, experts, width, config.parity_k, config.heads, own_k)
        self.dim = dim
        self.config = config
        self.num_experts = experts
        self.hidden_dim = width
        self.router = build_router(config.router, part, experts, generator)
        rules = default_balance(self.router) if config.balance is None else config.balance
        self.balance = build_balance(rules)
        square = (dim, dim)
        half_size = (2 * dim) ** -0.5
        self.head_proj = normal_parameter(square, generator, half_size)
        self.merge_proj = normal_parameter(square, generator, dim**-0.5)
        self.gate_up_proj = normal_parameter((experts, 2 * width, part), generator)
        self.down_proj = normal_parameter((experts, part, width), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; the routing that comes back counts a token's sub-tokens as its slots."""
        heads = self.config.heads
        inner = split_context(context, heads)
        parts = linear(x_TD, self.head_proj).reshape(-1, self.dim // heads)
        routing = self.router(parts, inner)
        mixed = routed_swiglu(self, parts, routing)
        y = linear(mixed.reshape(-1, self.dim), self.merge_proj)
        losses, aux = apply_balance(self.balance, routing, inner)
        return Mixed(y, by_token(routing, heads), losses, aux)

    def flops_per_token(self) -> float:
        """4 D^2 for head and merge, 6 k D F for the experts, 2 D E for the router."""
        maps = 4.0 * self.dim
        experts = 6.0 * self.router.experts_per_token * self.hidden_dim
        return self.dim * (maps + experts + 2.0 * self.num_experts)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six in two sub-tokens each, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": Config(num_experts=4, hidden_dim=5), "x_TD": x_TD}
