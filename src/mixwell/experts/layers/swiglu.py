"""A dense SwiGLU block: the mixture of one expert, and the yardstick of all the others.

**Equation:** y = W_down (silu(W_gate x) * (W_up x)).
**Shapes:** x [T, D]; gate_up_proj [2 F, D] holds W_gate above W_up; down_proj [D, F].
**Reference:** Shazeer 2020, GLU Variants Improve Transformer (2002.05202), eq. 6.
**Differs:** gate and up are one matrix, for one GEMM.
**Fails when:** never by itself.
**Cost:** 6 T D F FLOPs forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.kernels.experts import mlp
from mixwell.kernels.packing import weight_of
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the dense block."""

    hidden_dim: int  # F, at least 1

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1)


@method(title="Dense SwiGLU", paper="GLU Variants Improve Transformer", year=2020, tags={"tokenwise"})
class SwiGLU(ChannelMixer):
    """Dense SwiGLU feed-forward block."""

    packable = ("gate_up_proj", "down_proj")

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.gate_up_proj = normal_parameter((2 * config.hidden_dim, dim), generator)
        self.down_proj = normal_parameter((dim, config.hidden_dim), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]."""
        gate_up = weight_of(self, "gate_up_proj")
        down = weight_of(self, "down_proj")
        return Mixed(mlp(x_TD, gate_up, down))

    def flops_per_token(self) -> float:
        """6 D F."""
        return 6.0 * self.dim * self.config.hidden_dim


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": Config(hidden_dim=5), "x_TD": x_TD}
