"""A dense block of any width whose weights are a mixture that a router chooses by the width itself.

**Equation:** z = [m / F] says the architecture; r(z) = softmax_j(V relu(U z + u) + v) over M weights; `by` neuron: one
    softmax for each output of W_gate, W_up and W_down, row o of W(z) = sum_j r_oj(z) W_j[o]; `by` layer: one for all.
    y = W_down(z)[:, :m] (silu(W_gate(z)[:m] x) * (W_up(z)[:m] x)), m = F / f for f among `factors`. In training step s
    every layer uses f = factors[s mod n], else f = 1.
**Shapes:** x [T, D]; gate_up_proj [M, 2 F, D], down_proj [M, D, F]; U [H, 1], V [R, H], R = M (2 F + D) by neuron, M by
    layer, each M in a row.
**Reference:** Jawahar et al. 2024, Mixture-of-Supernets (2306.04845), section 3; the authors' code.
**Differs:** the width is all that varies, the same in every layer, so that z has one number, not ten. Widths take turns
    by step where the paper adds the losses of the largest, the smallest and a random one. No dropout in the router. The
    weights start sqrt(M) times as large, so that their mean has the spread of a plain start.
**Fails when:** M weights start alike: nothing can specialise then.
**Cost:** 6 T D m FLOPs forward, and 6 M D m a pass, whatever T, to mix the weights; none once a width is folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.kernels.experts import mlp
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the block of mixed weights."""

    hidden_dim: int  # F
    weights: int = 6  # M, at least 1
    factors: tuple[int, ...] = (1, 2, 4, 8)  # f: trained widths are F / f
    by: Literal["neuron", "layer"] = "neuron"  # what has a softmax of its own
    router_dim: int = 128  # H

    def __post_init__(self) -> None:
        check_least(self, hidden_dim=1, weights=1, router_dim=1)
        if not self.factors:
            raise ValueError("factors is empty; expected one at least, such as 1")
        for factor in self.factors:
            if factor < 1 or self.hidden_dim % factor:
                raise ValueError(f"factors has {factor}; expected divisors of hidden_dim = {self.hidden_dim}")


def shares(logits_R: Tensor, count: int) -> Tensor:
    """Shares of `count` weights, [count, R / count]: one softmax a column."""
    rows = logits_R.view(-1, count)
    return rows.softmax(1).T


def mixed(weights: Tensor, shares_MO: Tensor) -> Tensor:
    """sum_j r_oj W_j[o]: weights [M, O, I] and shares [M, O], or [M, 1] for all outputs alike, give [O, I]."""
    scaled = weights * shares_MO.unsqueeze(-1).to(weights.dtype)
    return scaled.sum(0)


def folded(gate_up_proj: Tensor, down_proj: Tensor, logits_R: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The dense block of a width: (gate above up [2 m, D], down [D, m]). logits_R: what the router says of it."""
    count, dim, hidden = down_proj.shape
    shares_MO = shares(logits_R, count)
    if shares_MO.shape[1] == 1:
        into = out = shares_MO
    else:
        both, out = shares_MO.split([2 * hidden, dim], dim=1)
        gate_share, up_share = both.chunk(2, dim=1)
        into = torch.cat([gate_share[:, :width], up_share[:, :width]], dim=1)
    gate, up = gate_up_proj.chunk(2, dim=1)
    gate_up = torch.cat([gate[:, :width], up[:, :width]], dim=1)
    return mixed(gate_up, into), mixed(down_proj[:, :, :width], out)


class ArchitectureRouter(nn.Module):
    """Logits of a width, from its share of the largest."""

    def __init__(self, hidden: int, outputs: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.into = normal_parameter((hidden, 1), generator, std=1.0)
        self.into_bias = normal_parameter((hidden,), generator, std=1.0)
        self.out = normal_parameter((outputs, hidden), generator)
        self.out_bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, share: float) -> Tensor:
        """[R], of the share m / F."""
        first = [self.into, self.into_bias]
        second = [self.out, self.out_bias]
        return routed([*first, *second], share)


def routed(router: Sequence[Tensor], share: float) -> Tensor:
    """V relu(U z + u) + v [R] of U, u, V, v and z = [share]."""
    into, into_bias, out, out_bias = router
    hidden = into[:, 0] * share + into_bias
    return F.linear(hidden.relu(), out, out_bias)


@method(title="Dense block of weights mixed by its width",
        paper="Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with Architecture-Routed "
              "Mixture-of-Experts", year=2023, tags={"tokenwise"})
class Supernet(ChannelMixer):
    """Dense SwiGLU blocks of several widths out of mixed weights; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        count, hidden = config.weights, config.hidden_dim
        std = 0.02 * count**0.5
        self.gate_up_proj = normal_parameter((count, 2 * hidden, dim), generator, std)
        self.down_proj = normal_parameter((count, dim, hidden), generator, std)
        columns = 2 * hidden + dim if config.by == "neuron" else 1
        self.architecture = ArchitectureRouter(config.router_dim, count * columns, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D], at the step's width in training and at the full one else."""
        factors = self.config.factors
        factor = factors[context.step % len(factors)] if self.training else 1
        width = self.config.hidden_dim // factor
        return Mixed(self.at_width(x_TD, width))

    def at_width(self, x_TD: Tensor, width: int) -> Tensor:
        """What the block of a width gives [T, D]."""
        logits_R = self.architecture(width / self.config.hidden_dim)
        gate_up, down = folded(self.gate_up_proj, self.down_proj, logits_R, width)
        return mlp(x_TD, gate_up, down)

    def flops_per_token(self) -> float:
        """6 D F, of the full width; mixing the weights, once a pass, is not counted."""
        return 6.0 * self.dim * self.config.hidden_dim


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, a block of eight units out of three weights."""
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": Config(hidden_dim=8, weights=3, router_dim=5), "x_TD": x_TD}
