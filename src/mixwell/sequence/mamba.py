"""Mamba: a selective state space model in place of attention.

**Equation:** [u, z] = W_in x;  u = silu(conv_W(u));  [r, B, C] = W_x u;  dt = softplus(W_dt r + b);
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  s_t = C_t . h_t + skip u_t,  y = W_out (s * silu(z));
    A = -exp(log_rate), each of the I channels with N states of its own; conv is depthwise and causal.
**Shapes:** x [B, T, D]; in_proj [2 I, D]; conv_weight [I, W]; x_proj [R + 2 N, I]; dt_proj [I, R]; log_rate [I, N].
**Reference:** Gu and Dao 2023 (2312.00752), algorithm 2 and section 3.4; the block is what MoE-Mamba (2401.04081) and
    BlackMamba (2402.01771) alternate with a mixture of experts.
**Differs:** a chunk's exponentials and products are made in bulk and only its multiply-adds run along the positions,
    instead of the paper's fused parallel scan; states between chunks are kept, the others made again going backward.
    B is discretised by Euler's rule, as in the authors' code. Maps start normal with std 0.02, the convolution uniform.
**Fails when:** a task needs to look up single far tokens: all that is kept of them is N numbers a channel. Padding
    counts as zeros in the convolution's window, so that only padding on the left leaves the other tokens untouched.
**Cost:** 6 T D I + 2 T I (2 R + 2 N + W) + 6 T I N FLOPs forward; B I (N + W - 1) numbers of cache, at any length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.mixing import SequenceMixed
from mixwell.sequence._scan import ScanBlock, ScanCache, ScanConfig


@dataclass(frozen=True, kw_only=True)
class Config(ScanConfig):
    """Options of Mamba: those of `ScanConfig`."""


@method(
    title="Mamba (selective scan)",
    paper=(
        "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        "MoE-Mamba: Efficient Selective State Space Models with Mixture of Experts",
        "BlackMamba: Mixture of Experts for State-Space Models",
    ),
    year=2023,
    tags={"recurrent"},
)
class Mamba(ScanBlock):
    """Mamba block; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(dim, config or Config(), generator)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor | None = None, cache: ScanCache | None = None,
                mask_BT: Tensor | None = None, context: Context | None = None) -> SequenceMixed:
        """[B, T, D] -> [B, T, D]; see `SequenceMixer`.

        Neither positions nor context are read: the scan knows the order by itself. Padding leaves the states alone.
        """
        return SequenceMixed(self.mix(x_BTD, cache, mask_BT))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two rows of five tokens of width eight."""
    config = Config(state_dim=4, chunk_size=2)
    x_BTD = torch.randn(2, 5, 8, generator=generator)
    return {"dim": 8, "config": config, "x_BTD": x_BTD}
