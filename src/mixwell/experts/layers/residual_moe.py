"""Residual mixture (PR-MoE): every token takes a fixed block and a routed expert, in learned shares; and the pyramid.

**Equation:** y = c_1 sum_{i in I(x)} w_i(x) E_i(x) + c_2 M(x);  (c_1, c_2) = softmax(V x + b). The pyramid gives deeper
    layers more experts: E_l is written out for each layer l.
**Shapes:** x [T, D]; gate_up_proj [E, 2 F, D]; down_proj [E, D, F]; shared_gate_up_proj [2 F', D];
    shared_down_proj [D, F']; coefficients.weight [2, D].
**Reference:** Rajbhandari et al. 2022, DeepSpeed-MoE (2201.05596), section 4, and the authors' code for c.
**Differs:** SwiGLU experts. The paper's text sums the branches without c: that is `experts.layers.moe` with
    shared_experts 1 and k = 1, to the last bit.
**Fails when:** c settles on the fixed block early; the experts then see little gradient.
**Cost:** 6 T D (k F + F') FLOPs forward, 2 T D (E + 2) for router and shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.core.checkpoint import channel_mixers, with_channel_mixers
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer, Gate, check_least, normal_parameter, routed_swiglu
from mixwell.kernels.experts import mlp
from mixwell.kernels.packing import weight_of
from mixwell.mixing import Mixed, apply_balance, build_balance, build_router, default_balance


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the residual mixture."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert
    shared_hidden_dim: int | None = None  # F', of the fixed block; default hidden_dim
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 1})
    # rule -> coefficient; default: switch 0.01 and z_loss 0.001, nothing for routers without logits
    balance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1)
        if self.shared_hidden_dim is not None:
            check_least(self, shared_hidden_dim=1)

    @property
    def shared_width(self) -> int:
        """Hidden width of the fixed block."""
        return self.shared_hidden_dim or self.hidden_dim


def pyramid(arch: Mapping[str, Any], experts_per_layer: Sequence[int]) -> dict[str, Any]:
    """`arch` with this many experts in each layer, first layer first; 0 leaves a layer as it is.

    Raises `MixwellError` where the counts do not fit the layers or a layer with a count has no experts.
    """
    specs = channel_mixers(arch)
    if len(experts_per_layer) != len(specs):
        raise MixwellError(f"pyramid: {len(experts_per_layer)} counts for {len(specs)} layers; give one for each.")
    for layer, (spec, count) in enumerate(zip(specs, experts_per_layer)):
        if count < 0 or (count and "num_experts" not in spec):
            raise MixwellError(f"pyramid: layer {layer} ({spec.get('method')}) cannot have {count} experts; give 0 "
                               "where a layer is dense.")
        if count:
            spec["num_experts"] = count
    return with_channel_mixers(arch, specs)


@method(
    title="Residual mixture of experts (PR-MoE)",
    paper="DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and Training to Power Next-Generation AI Scale",
    year=2022,
    tags={"router", "tokenwise"},
)
class ResidualMoE(ChannelMixer):
    """One fixed block and routed experts in learned shares; see the module's card."""

    config: Config
    router: Any
    packable = ("gate_up_proj", "down_proj", "shared_gate_up_proj", "shared_down_proj")

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.router = build_router(config.router, dim, config.num_experts, generator)
        self.balance = build_balance(default_balance(self.router) if config.balance is None else config.balance)
        self.gate_up_proj = normal_parameter((config.num_experts, 2 * config.hidden_dim, dim), generator)
        self.down_proj = normal_parameter((config.num_experts, dim, config.hidden_dim), generator)
        self.shared_gate_up_proj = normal_parameter((2 * config.shared_width, dim), generator)
        self.shared_down_proj = normal_parameter((dim, config.shared_width), generator)
        self.coefficients = Gate(dim, 2, generator, bias=True)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the routing and the losses that training adds."""
        routing = self.router(x_TD, context)
        shares = self.coefficients(x_TD).softmax(-1).to(x_TD.dtype)
        fixed = mlp(x_TD, weight_of(self, "shared_gate_up_proj"), weight_of(self, "shared_down_proj"))
        y = shares[:, :1] * routed_swiglu(self, x_TD, routing) + shares[:, 1:] * fixed
        losses, aux = apply_balance(self.balance, routing, context)
        return Mixed(y, routing, losses, aux)

    def flops_per_token(self) -> float:
        """6 D (k F + F') for the blocks, 2 D (E + 2) for router and shares."""
        hidden = self.router.experts_per_token * self.config.hidden_dim + self.config.shared_width
        return 6.0 * self.dim * hidden + 2.0 * self.dim * (self.config.num_experts + 2)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts and a fixed block of another width."""
    config = Config(num_experts=4, hidden_dim=5, shared_hidden_dim=7)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
