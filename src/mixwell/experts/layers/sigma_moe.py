"""Sigma-MoE: a feed-forward block cut into experts with gates that do not compete, so that it approximates the block.

**Equation:** s = sigmoid(W_3 x);  y = sum_{e in top-k(s)} s_e W_2^e relu(W_1^e x).  In training each expert fails each
    token with probability delta; gamma times minus the entropy of the batch's mean gate softmax(W_3 x) is added.
**Shapes:** x [T, D]; router.weight (W_3) [E, D]; key_proj (W_1) [E, F, D]; value_proj (W_2) [E, D, F].
**Reference:** Csordas et al. 2023 (2310.10837), section 5, and the authors' code. The standard deviations at the start
    are those of the dense block: sqrt(2 / (D L)) for W_1 and W_3, sqrt(2 / (E F L)) for W_2, L the number of layers;
    the rows of W_3 start with equal norms.
**Differs:** the weights are called key_proj and value_proj, since the language model scales whatever ends in down_proj
    by depth once more. delta and gamma default to values of the paper's order, from memory.
**Fails when:** k / E is small and gamma is 0: a few experts win.
**Cost:** 4 T k D F + 2 T D E FLOPs forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ACTIVATIONS, ChannelMixer, routed_mlp
from mixwell.mixing import Mixed, apply_balance, build_balance, build_router, check_least, normal_parameter


def _sigmoid_router() -> dict[str, Any]:
    return {"method": "expert_dropout", "k": 4, "scores": "sigmoid", "renormalise": False, "over": "token",
            "rate": 0.05}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the sigma mixture."""

    num_experts: int  # E
    hidden_dim: int  # F, of each expert (the paper's G)
    router: Mapping[str, Any] = field(default_factory=_sigmoid_router)  # sigmoid top-k with expert dropout (delta)
    balance: Mapping[str, Any] = field(
        default_factory=lambda: {"entropy": {"coefficient": 0.001, "rule": "batch"}})  # gamma
    activation: Literal["relu", "gelu"] = "relu"
    num_layers: int = 1  # L, for the deviations at the start; a language model fills it in

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=1, num_layers=1)


def equal_rows(weight: Tensor, std: float) -> Tensor:
    """The rows of `weight` [E, D] scaled to the norm std sqrt(D), so that no expert starts ahead."""
    directions = F.normalize(weight, dim=-1)
    return directions * std * weight.shape[-1] ** 0.5


@method(
    title="Sigma-MoE",
    paper="Approximating Two-Layer Feedforward Networks for Efficient Transformers",
    year=2023,
    tags={"router", "tokenwise"},
)
class SigmaMoE(ChannelMixer):
    """Mixture of two-matrix experts with sigmoid gates; see the module's card."""

    config: Config
    router: Any

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        experts = config.num_experts
        hidden = config.hidden_dim
        layers = config.num_layers
        into = (2 / (dim * layers)) ** 0.5
        out_of = (2 / (experts * hidden * layers)) ** 0.5
        self.router = build_router(config.router, dim, experts, generator)
        self.balance = build_balance(config.balance)
        self.key_proj = normal_parameter((experts, hidden, dim), generator, into)
        self.value_proj = normal_parameter((experts, dim, hidden), generator, out_of)
        weight = getattr(self.router, "weight", None)
        if isinstance(weight, Tensor):
            with torch.no_grad():
                weight.copy_(equal_rows(weight, into))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the routing and the losses that training adds."""
        routing = self.router(x_TD, context)
        activation = ACTIVATIONS[self.config.activation]
        y = routed_mlp(x_TD, routing, self.key_proj, self.value_proj, activation)
        losses, aux = apply_balance(self.balance, routing, context)
        return Mixed(y, routing, losses, aux)

    def flops_per_token(self) -> float:
        """4 k D F for the experts, 2 D E for the router."""
        c = self.config
        experts = 4.0 * self.router.experts_per_token * c.hidden_dim
        return self.dim * (experts + 2.0 * c.num_experts)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts of which each token takes two."""
    router = {**_sigmoid_router(), "k": 2}
    config = Config(num_experts=4, hidden_dim=5, router=router)
    x_TD = torch.randn(8, 6, generator=generator)
    context = Context(generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD, "context": context}
