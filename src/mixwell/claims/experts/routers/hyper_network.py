"""HyperRouter: router weights that a fixed random network writes from a trained embedding beat a trained linear router.

Paper: HyperRouter: Towards Efficient Training and Inference of Sparse Mixture of Experts.
Tried: the bench's language model, top-2 of eight experts with the same balance losses; against the linear router.
Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Bits per byte of the hyper-network router against the linear one."""
    method = bits(bench, bench.arch({"router": {"method": "hyper_network", "k": 2}}))
    return weigh("A hyper-network router beats a linear one.", BITS, method, bits(bench, bench.arch()),
                 note="Better with every seed, but by too different amounts for three seeds.")
