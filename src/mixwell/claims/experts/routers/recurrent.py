"""RMoE: a recurrent cell that carries the routing over depth gives better language models than a router per layer.

Paper: Layerwise Recurrent Router for Mixture-of-Experts.
Tried: the bench's language model with four layers, top-2 of eight experts, a state of width 32; against a linear router
in each layer. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.language import DEEP, bits
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Bits per byte of the recurrent router against linear ones."""
    router = {"method": "recurrent", "k": 2, "state_dim": 32}
    method = bits(bench, bench.arch({"router": router}, **DEEP))
    linear = bits(bench, bench.arch(**DEEP))
    return weigh("A recurrent router beats linear routers.", BITS, method, linear,
                 note="The gate reads a bounded state of width 32 with weights of std 0.02, so that its logits start "
                      "some four times smaller than a linear router's; a linear router started ten times smaller "
                      "learns as slowly. More steps, or a larger start, would be a fairer trial of the recurrence.")
