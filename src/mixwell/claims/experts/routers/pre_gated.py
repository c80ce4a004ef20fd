"""Read-ME: routers of different layers are redundant, so that one decision before the first layer serves them all.

Paper: Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System Co-Design.
Tried: the bench's language model with four layers, top-2 of eight experts; one decision for all layers against a router
in each, plus one per cent. Against it: more than one per cent more bits per byte. The paper distils its router from a
dense model; here it is trained with the rest.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS, plus_one_per_cent
from mixwell.claims.bench import Bench
from mixwell.claims.language import DEEP, bits
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Bits per byte of one decision for all layers against 1.01 times those of a router a layer."""
    router = {"method": "pre_gated", "k": 2, "ahead": "all"}
    arch = bench.arch({"router": router}, **DEEP)
    method = bits(bench, arch)
    plain = bench.arch(**DEEP)
    each = bits(bench, plain)
    return weigh("One routing decision for all layers costs at most one per cent.", f"{BITS}; baseline plus 1 %",
                 method, plus_one_per_cent(each))
