"""Mixture of attention heads: heads chosen for each token beat fixed heads at equal computation.

Paper: Mixture of Attention Heads: Selecting Attention Heads Per Token.
Tried: the bench's language model with dense blocks of width 64, its attention started anew; five of 16 query heads of
width 16 over one shared key, three coefficients of their balance loss, against attention with four heads of width 16,
which takes slightly more multiply-adds. Against it: bits per byte that are no lower, or more FLOPs a token.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, no_worse
from mixwell.claims.grids import variants
from mixwell.claims.language import FINE, RATES, block, from_trunk

HEADS = {"method": "sequence.mixture_of_attention_heads", "num_experts": 16, "num_heads": 5, "head_dim": 16}
MIXTURES = variants(HEADS, balance=variants({"z_loss": 0.001}, switch=(0.001, 0.01, 0.1)))


def measure(bench: Bench, seed: int, *, lr: float, **changes: Any) -> dict[str, float]:
    """Bits per byte, and forward FLOPs a token."""
    trained = from_trunk(bench, seed, mixer=block(64), lr=lr, swapped="sequence_mixer", **changes)
    return {"bits": trained.bits_per_byte, "flops": trained.model.flops_per_token(64)}


CLAIM = Claim(
    "Chosen heads beat fixed heads of equal computation.", BITS, quantity="bits", provided=(no_worse("flops", 0.001),),
    sides={"method": Side(measure, {}, {"lr": RATES, "sequence_mixer": MIXTURES}), "baseline": Side(measure, {}, FINE)})
