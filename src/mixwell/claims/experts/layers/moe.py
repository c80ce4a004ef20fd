"""Sparsely gated mixtures: at equal computation a mixture of experts models language better than a dense block.

Paper: Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer.
Tried: the bench's language model on 200,000 tokens, top-2 of eight experts of width 32, against a dense block of width
67, which takes the FLOPs of two experts and the router. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import finer, variants
from mixwell.claims.language import RATES, block, quality

TOKENS = 200_000
MIXTURES = variants({"hidden_dim": 32}, balance=variants({}, switch=(0.001, 0.01, 0.1)))

CLAIM = Claim(
    "A sparse mixture beats a dense block of equal computation.", BITS,
    sides={"method": Side(quality, {"tokens": TOKENS}, {"lr": RATES, "mixer": MIXTURES}),
           "baseline": Side(quality, {"tokens": TOKENS, "mixer": block(67)}, {"lr": finer(RATES, 9)})})
