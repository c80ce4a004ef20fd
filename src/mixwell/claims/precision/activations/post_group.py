"""MixPE: scaled after each group's sum and multiplied by shifts, a product is the one of weights dequantised before.

Paper: MixPE: Quantization and Hardware Co-design for Efficient LLM Inference. Its times and energies are those of
hardware, and not tried.
Tried: 16 tokens of 1024 channels and a matrix of 64 rows, codes of four bits in groups of 128 with zero points, inputs
of eight bits; how far the product is from the one of dequantised weights, and multiplications as a share of those that
dequantising before takes.
Against it: a largest difference of 1e-12 of the largest output or more, or a share above a fiftieth.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.precision._layers import plain
from mixwell.core.rng import generator
from mixwell.precision import integers
from mixwell.precision.activations.post_group import Config, counts, integers_of, post_group

CLAIM = Claim(
    "Scales after groups give the same product with few multiplications.", "largest difference over the largest output",
    quantity="difference", baseline=1e-12, provided=(Comparison(quantity="multiplications", baseline=0.02),))
TOKENS, ROWS, WIDTH = 16, 64, 1024


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """How far it is, and the share of multiplications."""
    draws = generator(seed, "post_group")
    x = torch.randn(TOKENS, WIDTH, generator=draws)
    weight = torch.randn(ROWS, WIDTH, generator=draws)
    config = Config(symmetric=False)
    found = post_group(x, weight, config)
    rounding = integers.Config(group_size=128, symmetric=False)
    dequantised = plain(integers.encode(weight, rounding))
    steps, scale = integers_of(x.double(), 8)
    whole = (steps * scale) @ dequantised.T
    away = (found.values - whole).abs().max() / whole.abs().max()
    made = counts(TOKENS, ROWS, WIDTH, config)
    share = made["multiplications"] / made["before"]
    return {"method": {"difference": float(away), "multiplications": share}}
