"""PR-MoE: a pyramid of residual mixtures reaches the quality of a uniform top-2 mixture with fewer parameters.

Paper: DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and Training to Power Next-Generation AI Scale.
Tried: the bench's language model; four and eight experts in the two layers, each token with the fixed block and one of
them (14 blocks in all), against top-2 of eight in both (16 blocks). Against it: bits per byte more than 1 % higher, or
no fewer parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench, Trained
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.language import BALANCED, TOKENS, from_trunk
from mixwell.experts.layers.residual_moe import pyramid


def figures(trained: Trained) -> dict[str, float]:
    """Bits per byte and parameters of a model."""
    size = trained.model.num_parameters()
    return {"bits": trained.bits_per_byte, "parameters": float(size)}


def residual(bench: Bench, seed: int, *, lr: float, balance: Mapping[str, Any],
             tokens: int = TOKENS) -> dict[str, float]:
    """The pyramid of four and eight experts."""
    arch = bench.arch({"method": "experts.layers.residual_moe", "balance": balance})
    rising = pyramid(arch, (4, 8))
    return figures(bench.train(rising, seed, lr=lr, tokens=tokens, swapped="channel_mixer"))


def uniform(bench: Bench, seed: int, **options: Any) -> dict[str, float]:
    """Top-2 of eight in both layers."""
    return figures(from_trunk(bench, seed, **options))


CLAIM = Claim(
    "A residual pyramid is within 1 % of a uniform mixture with fewer parameters.", BITS, quantity="bits",
    at_least=-0.01, relative=True, provided=(Comparison(quantity="parameters"),),
    sides={"method": Side(residual, {}, BALANCED), "baseline": Side(uniform, {}, BALANCED)})
