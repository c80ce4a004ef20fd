"""Representative units: an expert's score is what one hidden unit of it does, read off without training a router.

**Equation:** s_i = |(x . u_i) silu(x . g_i)|, g_i and u_i the unit rows of gate and up of expert i's representative;
    p = softmax(s);  I = top-k of p + b;  w_i = 1 + p_i v_i, with v = 0 at the start: chosen experts count fully.
    In training b_i <- b_i + u sign(mean load - load_i) after each step.
**Shapes:** x [T, D]; gate, up [E, D]; v, b [E]; indices and weights [T, K]; scores [T, E].
**Reference:** Pei et al. 2025, CMoE (2502.04416), section 4.2; constants from its released code.
**Differs:** g and u are trained with the rest; in the released code they stay frozen.
**Fails when:** experts are no disjoint parts of one block: weights of 1 add their outputs up.
**Cost:** O(T E D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.kernels.linear import linear
from mixwell.kernels.norm import wide
from mixwell.mixing import Router, check_above, check_k, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of routing by representative units."""

    k: int = 2  # experts per token, 1 to E
    update_rate: float = 0.001  # u, above 0

    def __post_init__(self) -> None:
        check_least(self, k=1)
        check_above(self, update_rate=0)


def unit_scores(x_TD: Tensor, gate_ED: Tensor, up_ED: Tensor) -> Tensor:
    """|(x . u_i) silu(x . g_i)| of each expert's representative [T, E]."""
    gate = linear(x_TD, gate_ED)
    up = linear(x_TD, up_ED)
    return (up * silu(gate)).abs()


def route(units_TE: Tensor, v_E: Tensor, bias_E: Tensor, k: int) -> Routing:
    """The routing that the representatives' scores [T, E] give."""
    scores = units_TE.softmax(-1)
    order_by = scores.detach() + bias_E
    indices = order_by.topk(k, dim=-1).indices
    chosen = scores.gather(-1, indices)
    weights = 1 + chosen * v_E[indices]
    return Routing(indices, weights, scores, units_TE)


@method(
    title="Representative units",
    paper="CMoE: Fast Carving of Mixture-of-Experts for Efficient LLM Inference",
    year=2025,
    tags={"token-choice", "batch-invariant", "exact-k"},
)
class Representative(Router):
    """Router that asks one hidden unit of each expert; see the module's card."""

    config: Config
    bias: Tensor

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        super().__init__(dim, num_experts, config, generator)
        self.gate = normal_parameter((num_experts, dim), generator)
        self.up = normal_parameter((num_experts, dim), generator)
        self.v = nn.Parameter(torch.zeros(num_experts))
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; the bias is read, never changed."""
        x = wide(x_TD)
        units = unit_scores(x, self.gate.to(x.dtype), self.up.to(x.dtype))
        v, bias = self.v.to(x.dtype), self.bias.to(x.dtype)
        return route(units, v, bias, self.config.k)

    def update(self, load_E: Tensor) -> None:
        """Move the bias after one optimiser step; `load_E` counts the slots of the whole batch, padding left out.

        Raises `ValueError` where the load is not one count for each expert.
        """
        if load_E.shape != self.bias.shape:
            raise ValueError(f"load has shape {list(load_E.shape)}; expected one count for each of "
                             f"{self.num_experts} experts")
        load = load_E.to(self.bias)
        error = load.mean() - load
        with torch.no_grad():
            self.bias += self.config.update_rate * error.sign()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
