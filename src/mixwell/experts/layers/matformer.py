"""A dense block whose first hidden units are smaller blocks: trained at all widths, cut to any of them afterwards.

**Equation:** y_f = W_down[:, :m] (silu(W_gate[:m] x) * (W_up[:m] x)), m = F / f, for f among `factors`. In training
    step s every layer uses f = factors[s mod n], so that each width gets its share of the steps; else f = 1.
**Shapes:** x [T, D]; gate_up_proj [2 F, D] holds W_gate above W_up; down_proj [D, F].
**Reference:** Devvrit et al. 2023, MatFormer (2310.07707), section 3.
**Differs:** widths take turns by step; the paper draws one for each step, its public re-run sums the losses of all.
    Attention is never cut, as in both.
**Fails when:** trained for few steps: each width sees 1 / n of them, the first units all.
**Cost:** 6 D F / f FLOPs per token.
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
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the nested block."""

    hidden_dim: int  # F
    factors: tuple[int, ...] = (1, 2, 4, 8)  # f: trained widths are F / f

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1)
        if not self.factors:
            raise ValueError("factors is empty; expected one at least, such as 1")
        for factor in self.factors:
            if factor < 1 or self.hidden_dim % factor:
                raise ValueError(f"factors has {factor}; expected divisors of hidden_dim = {self.hidden_dim}")


def prefix(gate_up: Tensor, down: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The block of the first `width` hidden units."""
    gate, up = gate_up.chunk(2)
    into = torch.cat([gate[:width], up[:width]])
    return into, down[:, :width]


@method(title="Nested dense block", paper="MatFormer: Nested Transformer for Elastic Inference", year=2023,
        tags={"tokenwise"})
class MatFormer(ChannelMixer):
    """Dense SwiGLU block with smaller ones inside; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.gate_up_proj = normal_parameter((2 * config.hidden_dim, dim), generator)
        self.down_proj = normal_parameter((dim, config.hidden_dim), generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], at the step's width in training and at the full one else."""
        factors = self.config.factors
        factor = factors[context.step % len(factors)] if self.training else 1
        width = self.config.hidden_dim // factor
        return Mixed(self.at_width(x_TD, width))

    def at_width(self, x_TD: Tensor, width: int) -> Tensor:
        """What the first `width` units give [T, D]."""
        gate_up, down = prefix(self.gate_up_proj, self.down_proj, width)
        return mlp(x_TD, gate_up, down)

    def flops_per_token(self) -> float:
        """6 D F, of the full width."""
        return 6.0 * self.dim * self.config.hidden_dim


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, a block of eight units."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": Config(hidden_dim=8), "x_TD": x_TD}
