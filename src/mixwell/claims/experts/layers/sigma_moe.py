"""Sigma-MoE: a mixture with as many parameters as the dense block matches it at a fraction of its computation.

Paper: Approximating Two-Layer Feedforward Networks for Efficient Transformers.
Tried: the bench's language model on 150,000 tokens; four of 16 experts of width 32 with sigmoid gates, against the
dense ReLU block of width 512 (equal parameters but the router's, four times the FLOPs). Against it: bits per byte more
than 2 % higher.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS, minus_share
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits
from mixwell.core.evidence import Evidence, weigh

TOKENS = 150_000
DENSE = {"method": "experts.layers.fast_feedforward", "hidden_dim": 512, "depth": 0, "hardening": 0.0}


def claim(bench: Bench) -> Evidence:
    """Bits per byte of the mixture against the dense block it is to approximate."""
    sparse = bench.arch({"method": "experts.layers.sigma_moe", "num_experts": 16, "hidden_dim": 32})
    block = bench.arch() | {"channel_mixer": DENSE}
    ours = bits(bench, sparse, TOKENS)
    theirs = bits(bench, block, TOKENS)
    allowed = minus_share(theirs, 0.02)
    return weigh("A sigma mixture is within 2 % of the dense block at a quarter of its FLOPs.", BITS, ours, theirs,
                 at_least=allowed)
