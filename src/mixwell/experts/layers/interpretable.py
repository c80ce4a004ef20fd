"""MoE-X: ReLU experts as parts of one wide sparse block, and tokens go to the experts that will be sparsest.

**Equation:** E_e(x) = W_dec^e relu(W_enc^e x).  With the rows of W_enc^e seen as draws of N(mu_e, diag(s_e)):
    P(unit of e is active) = (1 + erf(z_e)) / 2,  z_e = mu_e . x / sqrt(2 s_e . x^2);  l_e = - erf(z_e);
    w = softmax of the k largest l;  y = sum_{e in I} w_e E_e(x) = W_dec [w_e(f) relu(W_enc x)_f]_f.
**Shapes:** x [T, D]; up_proj (W_enc) [E, F, D]; down_proj (W_dec) [E, D, F]; mu and s [E, D] over the F units.
**Reference:** Yang et al. 2025, Mixture of Experts Made Intrinsically Interpretable (2503.07639), section 4.
**Differs:** from memory of the paper: l has no further scale, and mean and variance are those of the weights at each
    pass, so that the router has no parameters of its own and its gradient reaches the experts' encoders. Both maps
    start normal with std 0.02.
**Fails when:** encoder rows are far from one Gaussian (a few very large weights); erf saturates and gradients vanish.
**Cost:** 4 T k D F FLOPs forward for the experts, 4 T D E for the estimate, and one pass over W_enc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer, routed_mlp
from mixwell.kernels.norm import wide
from mixwell.mixing import Mixed, apply_balance, build_balance, check_k, check_least, normal_parameter, softmax_top_k


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the interpretable mixture."""

    num_experts: int  # E
    hidden_dim: int  # F, units of each expert, at least 2: their weights need a variance
    k: int = 2  # experts of a token, 2 to E, or 1 with weights that are not renormalised
    balance: Mapping[str, Any] = field(default_factory=lambda: {"switch": 0.01})  # rule -> coefficient

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, hidden_dim=2)
        check_k(self.k, self.num_experts)


def activity(x_TD: Tensor, up_EFD: Tensor) -> Tensor:
    """erf(z) [T, E]: twice the share of each expert's units that should be active, less 1."""
    x = wide(x_TD)
    up = up_EFD.to(x.dtype)
    mean = up.mean(1)
    variance = up.var(1, unbiased=False)
    tiny = torch.finfo(x.dtype).tiny
    spread = F.linear(x.square(), variance)
    spread = spread.clamp_min(tiny).sqrt()
    centred = F.linear(x, mean)
    z = centred / (spread * 2**0.5)
    return torch.erf(z)


@method(
    title="Interpretable mixture (MoE-X)",
    paper="Mixture of Experts Made Intrinsically Interpretable",
    year=2025,
    tags={"tokenwise"},
)
class InterpretableMoE(ChannelMixer):
    """Mixture of ReLU experts routed by expected sparsity; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        experts = config.num_experts
        hidden = config.hidden_dim
        self.balance = build_balance(config.balance)
        self.up_proj = normal_parameter((experts, hidden, dim), generator)
        self.down_proj = normal_parameter((experts, dim, hidden), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], with the routing and the losses that training adds."""
        active = activity(x_TD, self.up_proj)
        routing = softmax_top_k(-active, self.config.k)
        y = routed_mlp(x_TD, routing, self.up_proj, self.down_proj, torch.relu)
        losses, aux = apply_balance(self.balance, routing, context)
        return Mixed(y, routing, losses, aux)

    def flops_per_token(self) -> float:
        """4 k D F for the experts, 4 D E for the estimate of their sparsity."""
        c = self.config
        each = c.k * c.hidden_dim + c.num_experts
        return 4.0 * self.dim * each


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": Config(num_experts=4, hidden_dim=5), "x_TD": x_TD}
