"""HMoE: experts of unequal width model language better than equal ones, with fewer activated parameters.

Paper: HMoE: Heterogeneous Mixture of Experts for Language Modeling.
Tried: the bench's language model on 150,000 tokens; top-2 of eight experts of mean width 64, widths 1 to 2.5 in
arithmetic steps and the size penalty at 0.01, against equal widths with the Switch loss. Against it: bits per byte that
are no lower, or no fewer FLOPs a held-out token (`flops_of`).
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS, provided
from mixwell.claims.bench import Bench
from mixwell.claims.language import Seen, bits, layers, over_layers
from mixwell.core.evidence import Evidence, weigh

TOKENS = 150_000


def work(seen: Seen) -> float:
    """Forward FLOPs of a channel mixer for a token."""
    mixer = seen.mixer
    if hasattr(mixer, "flops_of"):
        return mixer.flops_of(seen.mixed)
    return mixer.flops_per_token()


def flops(bench: Bench, arch: dict[str, Any]) -> list[float]:
    """Forward FLOPs that a channel mixer took for a held-out token, mean over layers, from each seed."""
    return over_layers(layers(bench, arch, TOKENS), work)


def claim(bench: Bench) -> Evidence:
    """Bits per byte of unequal experts against equal ones."""
    unequal = bench.arch({"method": "experts.layers.heterogeneous"})
    equal = bench.arch()
    method = bits(bench, unequal, TOKENS)
    baseline = bits(bench, equal, TOKENS)
    evidence = weigh("Unequal experts beat equal ones with less computation.", BITS, method, baseline,
                     note="A fifth fewer FLOPs in the blocks with every seed, and bits per byte that are lower with "
                          "two seeds of three and 0.03 higher with the third.")
    ours, theirs = flops(bench, unequal), flops(bench, equal)
    return provided(evidence, max(ours) < min(theirs), "Its tokens take no fewer FLOPs.", method_flops=ours,
                    baseline_flops=theirs)
