"""SMILE: choosing a node and then an expert inside it loses nothing against Switch routing over all experts at once.

Paper: SMILE: Scaling Mixture-of-Experts with Efficient Bi-level Routing.
Tried: the bench's language model, eight experts as two nodes of four, one expert a token; against Switch's top-1 plus
one per cent. Against it: more than one per cent more bits per byte. The paper's gain in throughput comes from its
network and is not tried here.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS, plus_one_per_cent
from mixwell.claims.bench import Bench
from mixwell.claims.language import SWITCH, bits
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Bits per byte of bi-level routing against 1.01 times Switch's."""
    router = {"method": "bi_level", "k": 1, "nodes": 2}
    nodes = bench.arch({"router": router, "balance": {}})
    method = bits(bench, nodes)
    plain = bench.arch(SWITCH)
    switch = bits(bench, plain)
    return weigh("Bi-level routing stays within one per cent of Switch routing.", f"{BITS}; baseline plus 1 %",
                 method, plus_one_per_cent(switch))
