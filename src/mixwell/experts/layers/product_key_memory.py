"""Product-key memory: each token picks k of n^2 learned values by two short lists of n keys.

**Equation:** q = LN(W_q x) = [q_1, q_2] for each head;  s_ij = q_1 . c_i + q_2 . c'_j;  I = top-k of s;
    y = sum_heads sum_{(i, j) in I} w_ij v_ij, with w = softmax over I of s, or relu(s).
**Shapes:** x [T, D]; memory.query [H, 2 C, D]; memory.keys [H, 2, n, C]; values [n^2, D], common to all heads.
**Reference:** Lample et al. 2019, Large Memory Layers with Product Keys (1907.05242), section 3; relu after Csordas et
    al. 2023 (2310.10837), section 6.2.
**Differs:** queries are normalised by layer instead of by batch, so that a token's result does not depend on others;
    values have the model's width. From memory of both papers. Keys start normal with std 1 / sqrt(C), where the
    authors' code draws them uniformly up to there; values with std 1 / sqrt(D), as there.
**Fails when:** few slots are ever picked: softmax weights leave the others without gradient; relu helps.
**Cost:** 4 T H C (D + n) + 2 T H k D FLOPs forward; memory for n^2 D values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers._memory import ProductKeys, weighted_rows
from mixwell.experts.layers._parts import ChannelMixer
from mixwell.mixing import Mixed, check_least, normal_parameter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the product-key memory."""

    num_keys: int  # n, keys of each half; the memory has n^2 values
    k: int = 32  # values that each head picks, 1 to n
    heads: int = 4  # H
    key_dim: int = 64  # C, width of half a query
    weights: Literal["softmax", "relu"] = "softmax"  # from scores to weights; relu does not make values compete
    normalise: bool = True  # layer norm of each head's query

    def __post_init__(self) -> None:
        check_least(self, num_keys=1, k=1, heads=1, key_dim=1)
        if self.k > self.num_keys:
            raise ValueError(f"k is {self.k}; expected 1 to num_keys = {self.num_keys}")


@method(
    title="Product-key memory",
    paper=(
        "Large Memory Layers with Product Keys",
        "Approximating Two-Layer Feedforward Networks for Efficient Transformers",
    ),
    year=2019,
    tags={"tokenwise"},
)
class ProductKeyMemory(ChannelMixer):
    """Memory of values found by product keys; see the module's card."""

    config: Config

    def __init__(self, dim: int, config: Config, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        c = config
        slots = config.num_keys**2
        self.memory = ProductKeys(dim, c.num_keys, c.key_dim, c.heads, c.normalise, generator)
        self.values = normal_parameter((slots, dim), generator, dim**-0.5)

    def retrieve(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(weights [T, H, k], slots [T, H, k]) of the values that each token picks."""
        scores, slots = self.memory(x_TD, self.config.k)
        weights = scores.softmax(-1) if self.config.weights == "softmax" else scores.relu()
        return weights, slots

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]."""
        weights, slots = self.retrieve(x_TD)
        return Mixed(weighted_rows(self.values, slots.flatten(1), weights.flatten(1)))

    def flops_per_token(self) -> float:
        """4 H C (D + n) for queries and keys, 2 H k D for the values."""
        picked = self.config.heads * self.config.k
        return self.memory.flops_per_token() + 2.0 * picked * self.dim


def example(generator: torch.Generator) -> dict[str, Any]:
    """Eight tokens of width six, two heads that pick three of 25 values each."""
    config = Config(num_keys=5, k=3, heads=2, key_dim=4)
    x_TD = torch.randn(8, 6, generator=generator)
    return {"dim": 6, "config": config, "x_TD": x_TD}
