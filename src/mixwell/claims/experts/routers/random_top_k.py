"""THOR: experts drawn at random do better than a learnt Switch router.

Paper: Taming Sparsely Activated Transformer with Stochastic Experts.
Tried: the bench's language model, one expert a token drawn at random in training and the mean of all eight at inference
(eight times the compute then); against Switch's top-1. The paper's consistency loss, which takes two passes a token, is
not part of the router and is left out. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.language import SWITCH, bits
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Bits per byte of random routing against Switch's."""
    drawn = {"router": {"method": "random_top_k", "k": 1}}
    method = bits(bench, bench.arch(drawn))
    switch = bits(bench, bench.arch(SWITCH))
    return weigh("Experts drawn at random beat a learnt Switch router.", BITS, method, switch,
                 note="Lower on average, but not with every seed: so early in training a learnt top-1 router is no "
                      "better than chance.")
