"""GLU variants: a SwiGLU block models language better than ReLU and GELU blocks of equal parameters and computation.

Paper: GLU Variants Improve Transformer.
Tried: the bench's language model on 300,000 tokens, SwiGLU of width 128 against two-matrix blocks of width 192 with
ReLU (the baseline) and with GELU beside. Against it: bits per byte that are no lower than with ReLU, or higher than
with GELU.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS, no_worse, provided
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits, dense
from mixwell.core.evidence import Evidence, weigh


def two_matrices(bench: Bench, activation: str) -> dict[str, Any]:
    """The bench's decoder with W_2 act(W_1 x): a fast feedforward tree of a single leaf."""
    mixer = {"method": "experts.layers.fast_feedforward", "hidden_dim": 192, "depth": 0, "activation": activation,
             "hardening": 0.0}
    return {**bench.arch(), "channel_mixer": mixer}


def claim(bench: Bench) -> Evidence:
    """Bits per byte of SwiGLU against ReLU."""
    gated = dense(bench, 128)
    ours = bits(bench, gated)
    relu = bits(bench, two_matrices(bench, "relu"))
    gelu = bits(bench, two_matrices(bench, "gelu"))
    as_good = no_worse(ours, gelu, 0.0)
    evidence = weigh("SwiGLU beats two-matrix blocks of equal size.", BITS, ours, relu)
    return provided(evidence, as_good, "GELU's bits per byte are lower.", gelu=gelu)
