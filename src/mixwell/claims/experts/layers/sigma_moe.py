"""Sigma-MoE: a mixture with as many parameters as the dense block matches it at a fraction of its computation.

Paper: Approximating Two-Layer Feedforward Networks for Efficient Transformers.
Tried: the bench's language model on 150,000 tokens; four of 16 experts of width 32 with sigmoid gates, against the
dense ReLU block of width 512 (equal parameters but the router's, four times the FLOPs). Against it: bits per byte more
than 2 % higher.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import finer, variants
from mixwell.claims.language import RATES, quality

TOKENS = 150_000
DENSE = {"method": "experts.layers.fast_feedforward", "hidden_dim": 512, "depth": 0, "hardening": 0.0}
SIGMA = {"method": "experts.layers.sigma_moe", "num_experts": 16, "hidden_dim": 32}
ENTROPIES = variants({"rule": "batch"}, coefficient=(0.0003, 0.001, 0.003))
MIXTURES = variants(SIGMA, balance=variants({}, entropy=ENTROPIES))

CLAIM = Claim(
    "A sigma mixture is within 2 % of the dense block at a quarter of its FLOPs.", BITS, at_least=-0.02, relative=True,
    sides={"method": Side(quality, {"tokens": TOKENS}, {"lr": RATES, "mixer": MIXTURES}),
           "baseline": Side(quality, {"tokens": TOKENS, "channel_mixer": DENSE}, {"lr": finer(RATES, 9)})})
