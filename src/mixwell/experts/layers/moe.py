"""A sparse mixture of SwiGLU experts, with any router and any balance rules, and shared experts beside.

**Equation:** y = sum_{i in I(x)} w_i(x) E_i(x) + S(x);  E_i(x) = W_down^i (silu(W_gate^i x) * (W_up^i x));
    S the shared experts, which see every token, joined into one wide block, times sigmoid(w x) with `shared_gate`.
    With `clamp` c and biases: E_i(x) = W_down^i (g sigmoid(alpha g) * (u + 1)) + b_down^i, g = min(W_gate^i x + b, c),
    u = W_up^i x + b cut at -c and c.
**Shapes:** x [T, D]; gate_up_proj [E, 2 F, D]; down_proj [E, D, F].
**Reference:** Shazeer et al. 2017 (1701.06538), eq. 1; Jiang et al. 2024 (2401.04088); shared experts after
    Rajbhandari et al. 2022 (2201.05596) and DeepSeekMoE (2401.06066), their gate as in Qwen1.5-MoE; clamped
    experts with biases as in GPT-OSS (2508.10925).
**Differs:** dropless unless `capacity_factor` is set; balance rules see what the router preferred, before overflow. All
    maps start normal with std 0.02 at every width, where Switch draws with variance 0.1 over what they read.
**Fails when:** the router collapses; watch the load.
**Cost:** 6 T K D F FLOPs forward for the experts, 2 T D E for the router.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing, combine, dispatch, plan
from mixwell.experts.layers._parts import ChannelMixer, clamped_swiglu
from mixwell.kernels.experts import by_expert, each_expert, expert_mlp, is_one_token, mlp, one_token_mlp, swiglu
from mixwell.kernels.linear import linear
from mixwell.kernels.packing import weight_of
from mixwell.mixing import (
    Mixed,
    apply_balance,
    build_balance,
    build_dropout,
    build_overflow,
    build_router,
    check_above,
    default_balance,
    normal_parameter,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the sparse mixture."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # method and its options
    # rule -> coefficient; default: switch 0.01 and z_loss 0.001, nothing for routers without logits
    balance: Mapping[str, Any] | None = None
    capacity_factor: float | None = None  # an expert takes at most this times T K / E slots; default: all that come
    overflow: Mapping[str, Any] = field(default_factory=lambda: {"method": "drop"})  # rule for slots beyond capacity
    expert_dropout: float = 0.0  # training only: probability that a hidden unit of an expert drops, 0 up to 1
    shared_experts: int = 0  # experts that see every token
    shared_hidden_dim: int | None = None  # width of each shared expert; default hidden_dim
    shared_gate: bool = False  # a token's shared part counts by sigmoid(w x)
    clamp: float | None = None  # c: experts with biases and a clamped activation, see the card
    alpha: float = 1.702  # of the clamped activation

    def __post_init__(self) -> None:
        for name, least in (("num_experts", 1), ("hidden_dim", 1), ("shared_experts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise ValueError(f"capacity_factor is {self.capacity_factor}; expected a number above 0, or none")
        if self.shared_hidden_dim is not None and (self.shared_hidden_dim < 1 or not self.shared_experts):
            raise ValueError(f"shared_hidden_dim is {self.shared_hidden_dim} with {self.shared_experts} shared "
                             "experts; give both at least 1, or neither")
        if self.shared_gate and not self.shared_experts:
            raise ValueError("shared_gate needs shared_experts of at least 1")
        check_above(self, clamp=0)
        if self.clamp is not None and self.expert_dropout:
            raise ValueError("expert_dropout is not made for experts with a clamp; set it to 0")

    @property
    def shared_width(self) -> int:
        """Hidden width of the shared experts together."""
        return self.shared_experts * (self.shared_hidden_dim or self.hidden_dim)


@method(
    title="Sparse mixture of SwiGLU experts",
    paper=("Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer", "Mixtral of Experts"),
    year=2017,
    tags={"router", "tokenwise"},
)
class MoE(ChannelMixer):
    """Sparse mixture of SwiGLU experts."""

    config: Config
    router: Any
    overflow: Callable[[Routing, Context], Routing]
    spread: Callable[[Tensor, Tensor, Any], Tensor] | None = None  # where the experts lie with several processes
    packable = ("gate_up_proj", "down_proj", "shared_gate_up_proj", "shared_down_proj")

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.router = build_router(config.router, dim, config.num_experts, generator)
        self.balance = build_balance(default_balance(self.router) if config.balance is None else config.balance)
        self.overflow = build_overflow(config.overflow, config.capacity_factor)
        self.dropout = build_dropout(config.expert_dropout)
        if getattr(self.router, "needs_responses", False):
            if config.clamp is not None:
                raise ValueError(f"{type(self.router).__name__} asks experts for their responses; it takes no clamp")
            self.router.bind(self.responses)
        self.gate_up_proj = normal_parameter((config.num_experts, 2 * config.hidden_dim, dim), generator)
        self.down_proj = normal_parameter((config.num_experts, dim, config.hidden_dim), generator)
        if config.shared_width:
            self.shared_gate_up_proj = normal_parameter((2 * config.shared_width, dim), generator)
            self.shared_down_proj = normal_parameter((dim, config.shared_width), generator)
        if config.shared_gate:
            self.shared_gate = normal_parameter((1, dim), generator)
        if config.clamp is not None:
            self.gate_up_bias = nn.Parameter(torch.zeros(config.num_experts, 2 * config.hidden_dim))
            self.down_bias = nn.Parameter(torch.zeros(config.num_experts, dim))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the routing and the losses that training adds."""
        preferred = self.router(x_TD, context)
        routing = self.overflow(preferred, context)
        y = self._mixed(x_TD, routing, context)
        if self.config.shared_width:
            y = y + self._shared(x_TD)
        losses, aux = apply_balance(self.balance, preferred, context) if context.losses else ({}, None)
        return Mixed(y, routing, losses, aux)

    def _shared(self, x_TD: Tensor) -> Tensor:
        """What the shared experts give [T, D]."""
        y = mlp(x_TD, weight_of(self, "shared_gate_up_proj"), weight_of(self, "shared_down_proj"))
        if not self.config.shared_gate:
            return y
        return y * linear(x_TD, self.shared_gate).sigmoid()

    def _mixed(self, x_TD: Tensor, routing: Routing, context: Context) -> Tensor:
        """The weighted sum of each token's experts [T, D]."""
        if is_one_token(x_TD) and not self.training and self.config.clamp is None and self.spread is None:
            chosen = routing.indices_TK[0].tolist()
            gate_up, down = weight_of(self, "gate_up_proj"), weight_of(self, "down_proj")
            return one_token_mlp(x_TD, routing.weights_TK, chosen, gate_up, down)
        order = plan(routing.indices_TK, self.config.num_experts)
        rows_ND = dispatch(x_TD, order)
        run = functools.partial(self._experts, context=context)
        if self.spread is None:
            rows_ND = run(rows_ND, order.counts_E)
        else:
            rows_ND = self.spread(rows_ND, order.counts_E, run)
        return combine(rows_ND, order, routing.weights_TK)

    def _experts(self, rows_ND: Tensor, counts_E: Tensor, context: Context) -> Tensor:
        """Rows sorted by expert through their experts: [N, D] -> [N, D]."""
        if self.config.clamp is not None:
            biases = self.gate_up_bias, self.down_bias
            return each_expert(rows_ND, counts_E.tolist(), weight_of(self, "gate_up_proj"),
                               weight_of(self, "down_proj"), self._clamped, biases)
        if not (self.training and self.dropout):
            return expert_mlp(rows_ND, counts_E, weight_of(self, "gate_up_proj"), weight_of(self, "down_proj"))
        counts = counts_E.tolist()
        into = zip(rows_ND.split(counts), by_expert(weight_of(self, "gate_up_proj")))
        hidden = [swiglu(linear(part, weight)) for part, weight in into]
        kept = self.dropout(torch.cat(hidden), context)
        out_of = zip(kept.split(counts), by_expert(weight_of(self, "down_proj")))
        done = [linear(part, weight) for part, weight in out_of]
        return torch.cat(done)

    def _clamped(self, gate_up: Tensor) -> Tensor:
        """The clamped activation of gate and up side by side."""
        limit = self.config.clamp
        assert limit is not None
        return clamped_swiglu(gate_up, limit, self.config.alpha)

    def responses(self, x_TD: Tensor) -> Tensor:
        """||E_i(x)|| of every expert [T, E], for routers that choose by it."""
        norms = []
        stacks = by_expert(weight_of(self, "gate_up_proj")), by_expert(weight_of(self, "down_proj"))
        for gate_up, down in zip(*stacks):
            y = mlp(x_TD, gate_up, down)
            norms.append(y.norm(dim=-1))
        return torch.stack(norms, dim=-1)

    def flops_per_token(self) -> float:
        """6 K D F for the experts, 6 D F_shared, 2 D E for the router; K as the router counts it."""
        c = self.config
        hidden = self.router.experts_per_token * c.hidden_dim + c.shared_width
        routing = 2.0 * self.dim * c.num_experts
        return 6.0 * self.dim * hidden + routing


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts and a shared one."""
    config = Config(num_experts=4, hidden_dim=5, shared_experts=1)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
