"""Attention experts: two of four groups of heads, chosen by token, beat the two heads of plain attention.

Paper: LLaMA-MoE v2: Exploring Sparsity of LLaMA from Perspective of Mixture-of-Experts with Post-Training.
Tried: the bench's language model with dense blocks of width 64, its attention started anew: four experts of one head of
width 16, two a token, three coefficients of their balance loss, against attention with two heads of width 16, which is
as many heads a token. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import variants
from mixwell.claims.language import FINE, RATES, block, quality

EXPERTS = {"method": "sequence.attention_experts", "num_heads": 4, "head_dim": 16}
MIXTURES = variants(EXPERTS, balance=variants({}, switch=(0.001, 0.01, 0.1)))
HEADS = {"method": "sequence.attention", "num_heads": 2, "head_dim": 16}


def measure(bench: Bench, seed: int, *, lr: float, **changes: Any) -> float:
    """Bits per byte of held-out text."""
    return quality(bench, seed, mixer=block(64), lr=lr, swapped="sequence_mixer", **changes)


CLAIM = Claim(
    "Chosen groups of heads beat as many fixed heads.", BITS,
    sides={"method": Side(measure, {}, {"lr": RATES, "sequence_mixer": MIXTURES}),
           "baseline": Side(measure, {"sequence_mixer": HEADS}, FINE)})
