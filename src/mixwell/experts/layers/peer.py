"""PEER: a pool of single-neuron experts, up to millions, of which each head retrieves a few by product keys.

**Equation:** for each head: s = top-k of the product-key scores, I its slots, g = softmax(s) or sigmoid(s);
    y = sum_heads sum_{i in I} g_i gelu(u_i . x) v_i.
**Shapes:** x [T, D]; memory.query [H, 2 C, D]; memory.keys [H, 2, n, C]; up_proj (u) and values (v) [n^2, D], common
    to all heads.
**Reference:** He 2024, Mixture of A Million Experts (2407.04153), section 2 and algorithm 1.
**Differs:** queries are normalised by layer instead of by batch, so that a token's result does not depend on others;
    from memory of the paper. All start normal with one over the root of the width they read.
**Fails when:** few experts are ever retrieved; watch their use.
**Cost:** 4 T H C (D + n) + 4 T H k D FLOPs forward; memory for 2 n^2 D weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._memory import ProductKeys, dots_with_rows, weighted_rows
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the single-neuron experts."""

    num_keys: int  # n, keys of each half; there are n^2 experts
    k: int = 16  # experts that each head retrieves, 1 to n
    heads: int = 8  # H
    key_dim: int = 64  # C, width of half a query
    scores: Literal["softmax", "sigmoid"] = "softmax"  # from retrieved scores to weights
    normalise: bool = True  # layer norm of each head's query

    def __post_init__(self) -> None:
        check_least(self, num_keys=1, k=1, heads=1, key_dim=1)
        if self.k > self.num_keys:
            raise ValueError(f"k is {self.k}; expected 1 to num_keys = {self.num_keys}")


@method(
    title="Single-neuron experts (PEER)",
    paper="Mixture of A Million Experts",
    year=2024,
    tags={"tokenwise"},
)
class PEER(ChannelMixer):
    """Single-neuron experts retrieved by product keys; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        c = config
        experts = config.num_keys**2
        self.memory = ProductKeys(dim, c.num_keys, c.key_dim, c.heads, c.normalise, generator)
        std = dim**-0.5
        self.up_proj = normal_parameter((experts, dim), generator, std)
        self.values = normal_parameter((experts, dim), generator, std)

    def retrieve(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(weights [T, H, k], experts [T, H, k]) of the experts that each token's heads retrieve."""
        scores, slots = self.memory(x_TD, self.config.k)
        weights = scores.softmax(-1) if self.config.scores == "softmax" else scores.sigmoid()
        return weights, slots

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]."""
        weights, slots = self.retrieve(x_TD)
        slots_TS = slots.flatten(1)
        hidden = F.gelu(dots_with_rows(x_TD, self.up_proj, slots_TS))
        gates = weights.flatten(1).to(hidden.dtype)
        return Mixed(weighted_rows(self.values, slots_TS, gates * hidden))

    def flops_per_token(self) -> float:
        """4 H C (D + n) for queries and keys, 4 H k D for the experts."""
        retrieved = self.config.heads * self.config.k
        return self.memory.flops_per_token() + 4.0 * retrieved * self.dim


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, two heads that retrieve three of 25 experts each."""
    config = Config(num_keys=5, k=3, heads=2, key_dim=4)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
