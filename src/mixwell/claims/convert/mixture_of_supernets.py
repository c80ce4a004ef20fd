"""Mixture of supernets: widths that mix their own weights are better, in the mean, than widths that share one weight.

Paper: Mixture-of-Supernets: Improving Weight-Sharing Supernet Training with Architecture-Routed Mixture-of-Experts.
Tried: the bench's decoder with blocks of width 256 trained at widths 256, 128 and 64 in turn for 200,000 tokens, four
weights mixed by neuron, against one weight for all; bits per byte of the dense models folded out, mean over the three
widths. Against it: a mean that is no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import TOKENS, bits, made
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Widths that mix their own weights beat widths that share one.", BITS)
WIDTHS = (256, 128, 64)
SUPERNET = {"method": "experts.layers.supernet", "hidden_dim": 256, "factors": [1, 2, 4], "router_dim": 32}
SIDES: dict[str, dict[str, object]] = {
    "method": {"weights": 4},
    "baseline": {"weights": 1},
}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Mean bits per byte over the widths, of each side."""
    found = {}
    for name, options in SIDES.items():
        found[name] = mean_bits(bench, options, seed)
    return found


def mean_bits(bench: Bench, options: dict[str, object], seed: int) -> float:
    """Of the dense models folded out of one training."""
    mixer = {**SUPERNET, **options}
    trained = bench.train(bench.arch(channel_mixer=mixer), seed, tokens=TOKENS)
    before = trained.model.to_checkpoint()
    found = []
    for width in WIDTHS:
        folded = made(bench, "mixture_of_supernets", before, seed, {"widths": width})
        found.append(bits(bench, folded))
    return sum(found) / len(found)
