"""A dense block whose matrices are mixtures of templates, so that it can be widened by mixing them anew.

**Equation:** block b of B: W_gate^b = sum_t a_bt T_t, W_up^b = sum_t a'_bt T'_t, W_down^b = sum_t a''_bt T''_t over n
    templates;  y = sum_b W_down^b (silu(W_gate^b x) * (W_up^b x)): one dense block of B F hidden units.
**Shapes:** x [T, D]; templates gate_up_proj [n, 2 F, D], down_proj [n, D, F]; coefficients [3, B, n] of gate, up,
    down.
**Reference:** Pham et al. 2024, MixtureGrowth (2311.04251); templates after Savarese and Maire 2019 (1902.09701).
**Differs:** the paper makes convolutions of image networks so; here it is the feed-forward block, whose hidden width
    grows while the model's stays. A block's first coefficients are a unit vector drawn at random, so that weights start
    as large as plain ones; each further block's are those of `least_aligned`.
**Fails when:** n is below B: weights of several blocks then depend on each other.
**Cost:** 6 T D B F FLOPs forward, and 6 n B D F a pass, whatever T, to mix the templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.kernels.experts import mlp
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the block of templates."""

    hidden_dim: int  # F, of each block
    templates: int = 2  # n, at least 1
    blocks: int = 1  # B, at least 1

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1, templates=1, blocks=1)


def least_aligned(rows_Bn: Tensor) -> Tensor:
    """The unit vector c [n] of least ||A c|| for the rows A [B, n]: orthogonal to all of them where B is below n."""
    right_nn = torch.linalg.svd(rows_Bn.double(), full_matrices=True).Vh
    vector = right_nn[-1]
    sign = torch.where(vector.sum() < 0, -1.0, 1.0)  # of the two, so that machines agree
    signed = sign * vector
    return signed.to(rows_Bn.dtype)


def widened(rows_Bn: Tensor, more: int) -> Tensor:
    """The rows of coefficients with `more` below them, each least aligned with all above it."""
    for _ in range(more):
        row = least_aligned(rows_Bn)
        rows_Bn = torch.cat([rows_Bn, row[None]])
    return rows_Bn


def first_coefficients(config: Config, generator: torch.Generator | None) -> nn.Parameter:
    """Unit vectors for gate, up and down [3, B, n]; the first of each is drawn."""
    drawn = normal_parameter((3, 1, config.templates), generator).detach()
    unit = nn.functional.normalize(drawn, dim=-1)
    parts = [widened(rows, config.blocks - 1) for rows in unit]
    return nn.Parameter(torch.stack(parts))


def folded(gate_up_proj: Tensor, down_proj: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The dense block that templates and coefficients make: (gate above up [2 B F, D], down [D, B F])."""
    gate_n, up_n = gate_up_proj.chunk(2, dim=1)
    a_gate, a_up, a_down = coefficients.to(gate_up_proj.dtype)
    gate = torch.einsum("bn,nfd->bfd", a_gate, gate_n)
    up = torch.einsum("bn,nfd->bfd", a_up, up_n)
    down = torch.einsum("bn,ndf->dbf", a_down, down_proj)
    gate_up = torch.cat([gate.flatten(0, 1), up.flatten(0, 1)])
    return gate_up, down.flatten(1)


@method(title="Dense block of mixed templates",
        paper="MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters", year=2024, tags={"tokenwise"})
class Templates(ChannelMixer):
    """Dense SwiGLU block of mixed templates; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        count = config.templates
        self.gate_up_proj = normal_parameter((count, 2 * config.hidden_dim, dim), generator)
        self.down_proj = normal_parameter((count, dim, config.hidden_dim), generator)
        self.coefficients = first_coefficients(config, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]."""
        gate_up, down = folded(self.gate_up_proj, self.down_proj, self.coefficients)
        y_TD = mlp(x_TD, gate_up, down)
        return Mixed(y_TD)

    def flops_per_token(self) -> float:
        """6 D B F; mixing the templates, once a pass, is not counted."""
        width = self.config.blocks * self.config.hidden_dim
        return 6.0 * self.dim * width


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, two blocks of five units out of three templates."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": Config(hidden_dim=5, templates=3, blocks=2), "x_TD": x_TD}
