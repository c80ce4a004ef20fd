"""A dense SwiGLU block: the mixture of one expert, and the yardstick of all the others.

**Equation:** y = W_down (silu(W_gate x) * (W_up x)), or with another activation, with biases, or without a gate:
    y = W_down act(W_up x + b_up) + b_down.
**Shapes:** x [T, D]; gate_up_proj [2 F, D] holds W_gate above W_up, up_proj [F, D] where there is no gate; down_proj
    [D, F].
**Reference:** Shazeer 2020, GLU Variants Improve Transformer (2002.05202), eq. 5-6.
**Differs:** gate and up are one matrix, for one GEMM. Maps start normal with std 0.02.
**Fails when:** never by itself.
**Cost:** 6 T D F FLOPs forward, 4 T D F without a gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ACTIVATIONS, ChannelMixer
from mixwell.kernels.experts import mlp
from mixwell.kernels.linear import linear
from mixwell.kernels.packing import weight_of
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the dense block."""

    hidden_dim: int  # F, at least 1
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"  # gelu_tanh: GELU by its approximation
    gated: bool = True  # False: no W_gate
    bias: bool = False  # on every map

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1)


@method(title="Dense SwiGLU", paper="GLU Variants Improve Transformer", year=2020, tags={"tokenwise"})
class SwiGLU(ChannelMixer):
    """Dense SwiGLU feed-forward block."""

    packable = ("gate_up_proj", "up_proj", "down_proj")

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.plain = config.activation == "silu" and config.gated and not config.bias
        self.into = "gate_up" if config.gated else "up"
        rows = config.hidden_dim * (2 if config.gated else 1)
        self.register_parameter(f"{self.into}_proj", normal_parameter((rows, dim), generator))
        self.down_proj = normal_parameter((dim, config.hidden_dim), generator)
        if config.bias:
            self.register_parameter(f"{self.into}_bias", nn.Parameter(torch.zeros(rows)))
            self.down_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]."""
        into = weight_of(self, f"{self.into}_proj")
        down = weight_of(self, "down_proj")
        if self.plain:
            return Mixed(mlp(x_TD, into, down))
        hidden = self._biased(linear(x_TD, into), self.into)
        activated = self._activated(hidden)
        return Mixed(self._biased(linear(activated, down), "down"))

    def _activated(self, hidden: Tensor) -> Tensor:
        """[T, F] of what the first map gave."""
        activation = ACTIVATIONS[self.config.activation]
        if not self.config.gated:
            return activation(hidden)
        gate, up = hidden.chunk(2, dim=-1)
        return activation(gate) * up

    def _biased(self, y: Tensor, name: str) -> Tensor:
        if not self.config.bias:
            return y
        return y + self.get_parameter(f"{name}_bias")

    def flops_per_token(self) -> float:
        """6 D F, or 4 D F without a gate."""
        maps = 3 if self.config.gated else 2
        return 2.0 * maps * self.dim * self.config.hidden_dim


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": Config(hidden_dim=5), "x_TD": x_TD}
