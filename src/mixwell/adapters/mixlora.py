"""MixLoRA: a dense block becomes a mixture whose experts are the frozen block with a low-rank change each.

**Equation:** E_i(x) = (W_down + s B_i A_i) (silu(g_i) * u_i), (g_i, u_i) = (W_gate_up + s B'_i A'_i) x;
    y = F(x) + sum_{i in I(x)} w_i(x) (E_i(x) - F(x)), F the frozen block, s = alpha / R; w from the router.
    Where a token's weights sum to 1, that is sum_i w_i E_i(x).
**Shapes:** x [T, D]; into_A [E, R, D], into_B [E, 2 F, R], out_A [E, R, F], out_B [E, D, R].
**Reference:** Li et al. 2024, MixLoRA (2404.15159).
**Differs:** gate and up stand in one matrix here and share A. The frozen block counts by itself, so that the start is
    the base to the bit, and a token that no expert takes keeps it. The balance loss is taken layer by layer and is 1
    at balance; there, over the logits of all layers joined, and k. LoRA on attention is `adapters.lora` beside.
**Fails when:** one mapping serves all tasks; then one LoRA of equal size does as well.
**Cost:** the frozen block once, W_down once more and 2 R (D + 2 F) + 2 R (F + D) a slot, 2 D E for the router.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.adapters._parts import dropped, product, thin_pair
from mixwell.adapters._routed import RoutedLayer, check_width, through
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers.swiglu import Config as Block
from mixwell.experts.layers.swiglu import SwiGLU
from mixwell.kernels.experts import swiglu
from mixwell.kernels.linear import linear
from mixwell.kernels.packing import weight_of
from mixwell.mixing import Mixed, check_above, check_least, check_rate


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of MixLoRA."""

    num_experts: int = 8  # E
    rank: int = 16  # R, of each expert's changes
    alpha: float = 32.0  # a change counts alpha / R times
    dropout: float = 0.0  # of what goes into A, in training; 0 up to 1
    router: Mapping[str, Any] = field(default_factory=lambda: {"method": "top_k", "k": 2})  # method and its options
    balance: Mapping[str, Any] = field(default_factory=lambda: {"switch": 0.01})  # rule -> coefficient

    def __post_init__(self) -> None:
        check_least(self, num_experts=1, rank=1)
        check_above(self, alpha=0)
        check_rate(self, "dropout")


@method(
    title="MixLoRA",
    paper="MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA based Mixture of Experts",
    year=2024,
)
class MixLoRA(RoutedLayer):
    """A mixture of low-rank changes of a dense block; see the module's card."""

    targets = ("channel_mixer",)
    config: Config

    def __init__(self, target: Target, config: Config, generator: torch.Generator) -> None:
        super().__init__(target, config)
        block = target.owner
        if not getattr(block, "plain", False):
            raise MixwellError(f"{target.name} is {type(block).__name__}; MixLoRA stands at a dense SwiGLU block "
                               "without biases. At a mixture take adapters.perft or adapters.lora.")
        width, hidden = weight_of(block, "down_proj").shape
        check_width(config.rank, min(width, hidden), target)
        self.scale = config.alpha / config.rank
        self.put_router(config.router, config.balance, config.num_experts, generator)
        stack, rank = (config.num_experts,), config.rank
        self.into_A, self.into_B = thin_pair(stack, 2 * hidden, width, rank, generator)
        self.out_A, self.out_B = thin_pair(stack, width, hidden, rank, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; the base's result and the experts' changes of it."""
        block = self.target.owner
        mixed: Mixed = self.base(x_TD, context)
        routing = self.route(x_TD, context)
        gate_up_TH = linear(x_TD, weight_of(block, "gate_up_proj"))  # once a token, whatever its experts are
        draws = context.generator if self.training else None
        change = functools.partial(self.change, draws=draws)
        more = through((x_TD, gate_up_TH), routing, change)
        return mixed._replace(y_TD=mixed.y_TD + more)

    def change(self, x_ND: Tensor, gate_up_NH: Tensor, expert: int, draws: torch.Generator | None) -> Tensor:
        """E_i(x) - F(x) of an expert's rows [N, D], `gate_up_NH` being W_gate_up x."""
        rate = self.config.dropout
        down = weight_of(self.target.owner, "down_proj")
        into = product(dropped(x_ND, rate, draws), self.into_A[expert], self.into_B[expert])
        hidden = swiglu(gate_up_NH + self.scale * into)
        moved = hidden - swiglu(gate_up_NH)
        out = product(dropped(hidden, rate, draws), self.out_A[expert], self.out_B[expert])
        return linear(moved, down) + self.scale * out


def example(generator: torch.Generator) -> dict[str, Any]:
    """Four experts of rank two at a block of width six."""
    owner = SwiGLU(6, Block(hidden_dim=5), generator)
    config = Config(num_experts=4, rank=2, alpha=4.0)
    return {"target": Target("channel_mixer", owner), "config": config}
