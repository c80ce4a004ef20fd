"""Residual mixture (PR-MoE): every token takes a fixed block and a routed expert, in learned shares; and the pyramid.

**Equation:** y = c_1 sum_{i in I(x)} w_i(x) E_i(x) + c_2 M(x);  (c_1, c_2) = softmax(V x + b). The pyramid gives deeper
    layers more experts: E_l is written out for each layer l.
**Shapes:** x [T, D]; gate_up_proj [E, 2 F, D]; down_proj [E, D, F]; shared_gate_up_proj [2 F', D];
    shared_down_proj [D, F']; coefficients.weight [2, D].
**Reference:** Rajbhandari et al. 2022, DeepSpeed-MoE (2201.05596), section 4, and the authors' code for c.
**Differs:** SwiGLU experts. The paper's text sums the branches without c: that is `experts.layers.moe` with
    shared_experts 1 and k = 1, to the last bit. All start normal with std 0.02. Not here: Mixture-of-Students, a
    shallower mixture taught by its teacher until late in training, which is a training of two models and no layer; and
    the paper's inference engine.
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
from mixwell.experts.layers._parts import ChannelMixer, Gate, routed_swiglu
from mixwell.kernels.experts import mlp
from mixwell.kernels.packing import weight_of
from mixwell.mixing import (
    Mixed,
    apply_balance,
    build_balance,
    build_router,
    check_least,
    default_balance,
    normal_parameter,
)


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
        check_least(self, num_experts=1, hidden_dim=1, shared_hidden_dim=1)

    @property
    def shared_width(self) -> int:
        """Hidden width of the fixed block."""
        return self.shared_hidden_dim or self.hidden_dim


def pyramid(arch: Mapping[str, Any], experts_per_layer: Sequence[int]) -> dict[str, Any]:
    """`arch` with this many experts in each layer, first layer first; 0 leaves a layer as it is.

    Raises `MixwellError` where the counts do not fit the layers or a layer with a count has no experts.
    """
    specs = channel_mixers(arch)
    layers = len(specs)
    given = len(experts_per_layer)
    if given != layers:
        raise MixwellError(f"pyramid: {given} counts for {layers} layers; give one for each.")
    for layer, (spec, count) in enumerate(zip(specs, experts_per_layer)):
        sparse = "num_experts" in spec
        if count < 0 or (count and not sparse):
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
        self.dim = dim
        self.config = config
        experts = config.num_experts
        hidden = config.hidden_dim
        shared = config.shared_width
        self.router = build_router(config.router, dim, experts, generator)
        rules = default_balance(self.router) if config.balance is None else config.balance
        self.balance = build_balance(rules)
        self.gate_up_proj = normal_parameter((experts, 2 * hidden, dim), generator)
        self.down_proj = normal_parameter((experts, dim, hidden), generator)
        self.shared_gate_up_proj = normal_parameter((2 * shared, dim), generator)
        self.shared_down_proj = normal_parameter((dim, shared), generator)
        self.coefficients = Gate(dim, 2, generator, bias=True)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the routing and the losses that training adds."""
        routing = self.router(x_TD, context)
        shares = self.coefficients(x_TD).softmax(-1)
        of_routed, of_fixed = shares.to(x_TD.dtype).split(1, dim=1)
        fixed = mlp(x_TD, weight_of(self, "shared_gate_up_proj"), weight_of(self, "shared_down_proj"))
        routed = routed_swiglu(self, x_TD, routing)
        y = of_routed * routed + of_fixed * fixed
        losses, aux = apply_balance(self.balance, routing, context)
        return Mixed(y, routing, losses, aux)

    def flops_per_token(self) -> float:
        """6 D (k F + F') for the blocks, 2 D (E + 2) for router and shares."""
        c = self.config
        hidden = self.router.experts_per_token * c.hidden_dim + c.shared_width
        outputs = c.num_experts + 2
        return 6.0 * self.dim * hidden + 2.0 * self.dim * outputs


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts and a fixed block of another width."""
    config = Config(num_experts=4, hidden_dim=5, shared_hidden_dim=7)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
