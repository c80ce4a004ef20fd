"""Auxiliary-loss-free balancing: a bias per expert chooses, never weighs, and follows the load.

**Equation:** s = sigmoid(W x);  I = top-k of (s_i + b_i);  w_i = scale s_i / sum_{j in I} s_j;
    after each step, with c_i the tokens of expert i:  e_i = mean(c) - c_i;
    sign: b_i <- b_i + u sign(e_i);  proportional: b_i <- b_i + u e_i / mean(c).
**Shapes:** x [T, D], W [E, D], b [E], indices and weights [T, K], scores [T, E].
**Reference:** Wang et al. 2024 (2408.15664), algorithm 1; DeepSeek-V3 (2412.19437), eq. 13-16; groups
    ranked by the sum of their two best s_i + b_i, section 2.1.2 there.
**Differs:** the proportional rule divides by the mean load, so that u means the same at every batch size (the paper's
    ablation does not). Equations from memory of both papers. W starts normal with std 0.02, b at zero.
**Fails when:** `update` is never called: the bias then stays at zero and nothing balances. It must be called once an
    optimiser step with the loads of the whole batch, over accumulation steps and ranks.
**Cost:** as top-k; O(E) a step for the update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context, Routing
from mixwell.experts.routers._parts import LinearRouter, check_group_sizes, check_groups, keep_groups
from mixwell.mixing import check_above, check_choice, check_k, renormalises, select


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of loss-free bias balancing."""

    k: int = 2  # experts per token, 1 to E
    scores: Literal["sigmoid", "softmax"] = "sigmoid"  # from logits to scores
    update_rate: float = 0.001  # u, above 0
    rule: Literal["sign", "proportional"] = "sign"  # how the bias follows the load
    renormalise: bool | None = None  # weights of a token sum to `scale`; default: wherever k > 1
    scale: float = 1.0  # factor on the weights, above 0
    groups: int = 1  # experts come in this many groups of equal size
    groups_kept: int = 1  # a token chooses inside its best groups only

    def __post_init__(self) -> None:
        check_choice(self.k, self.renormalise)
        check_groups(self.groups, self.groups_kept)
        check_above(self, update_rate=0, scale=0)


def updated_bias(bias_E: Tensor, load_E: Tensor, config: Config) -> Tensor:
    """The bias after a step in which expert i received load_E[i] tokens."""
    load = load_E.to(bias_E.dtype)
    mean = load.mean()
    error = mean - load
    if config.rule == "proportional":
        return bias_E + config.update_rate * error / mean.clamp_min(1)
    return bias_E + config.update_rate * error.sign()


def route(logits_TE: Tensor, bias_E: Tensor, config: Config) -> Routing:
    """The routing that the logits [T, E] give when `bias_E` shifts the choice."""
    if config.scores == "sigmoid":
        scores = logits_TE.sigmoid()
    else:
        scores = logits_TE.softmax(-1)
    order_by = scores.detach() + bias_E.to(scores.dtype)
    if config.groups > 1:
        order_by = keep_groups(order_by, config.groups, config.groups_kept)
    scaled = renormalises(config.k, config.renormalise)
    indices, weights = select(scores, config.k, by_TE=order_by, renormalise=scaled, scale=config.scale)
    return Routing(indices, weights, scores, logits_TE)


@method(
    title="Loss-free bias balancing",
    paper=("Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", "DeepSeek-V3 Technical Report"),
    year=2024,
    tags={"token-choice", "batch-invariant", "exact-k", "simplex"},
)
class LossFreeBias(LinearRouter):
    """Top-k router with a bias that follows the load; see the module's card."""

    config: Config
    bias: Tensor

    def __init__(self, dim: int, num_experts: int, config: Config | None = None,
                 generator: torch.Generator | None = None) -> None:
        config = config or Config()
        check_k(config.k, num_experts)
        check_group_sizes(num_experts, config.k, config.groups, config.groups_kept)
        super().__init__(dim, num_experts, config, generator)
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Route the tokens [T, D]; the bias is read, never changed."""
        return route(self.logits(x_TD), self.bias, self.config)

    def update(self, load_E: Tensor) -> None:
        """Move the bias after one optimiser step; `load_E` counts the slots of the whole batch, padding left out.

        Raises `ValueError` where the load is not one count for each expert.
        """
        if load_E.shape != self.bias.shape:
            raise ValueError(f"load has shape {list(load_E.shape)}; expected one count for each of "
                             f"{self.num_experts} experts")
        load = load_E.to(self.bias.device)
        with torch.no_grad():
            moved = updated_bias(self.bias, load, self.config)
            self.bias.copy_(moved)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, four experts."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "num_experts": 4, "config": Config(), "x_TD": x_TD}
