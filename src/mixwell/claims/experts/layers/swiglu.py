"""GLU variants: a SwiGLU block models language better than ReLU and GELU blocks of equal parameters and computation.

Paper: GLU Variants Improve Transformer.
Tried: the bench's language model from its first step on 600,000 tokens, for the trunk was trained with one of the
sides; SwiGLU of width 128 against two-matrix blocks of width 192 with ReLU (the baseline) and with GELU. Against it:
bits per byte that are no lower than with ReLU, or no lower than with GELU.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.language import RATES, block, quality

FRESH: dict[str, Any] = {"swapped": None, "tokens": 600_000}


def two_matrices(activation: str) -> Side:
    """Models with W_2 act(W_1 x): a fast feedforward tree of a single leaf."""
    mixer = {"method": "experts.layers.fast_feedforward", "hidden_dim": 192, "depth": 0, "activation": activation,
             "hardening": 0.0}
    return Side(quality, {**FRESH, "channel_mixer": mixer}, {"lr": RATES})


CLAIM = Claim(
    "SwiGLU beats two-matrix blocks of equal size.", BITS, provided=(Comparison(baseline="gelu"),),
    sides={"method": Side(quality, {**FRESH, "mixer": block(128)}, {"lr": RATES}), "baseline": two_matrices("relu"),
           "gelu": two_matrices("gelu")})
