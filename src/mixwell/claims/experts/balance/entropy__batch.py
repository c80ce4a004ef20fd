"""Sigma-MoE: sigmoid gates with an entropy loss over the batch beat softmax gates with the Switch loss.

Paper: Approximating Two-Layer Feedforward Networks for Efficient Transformers; on the method balance.entropy with rule
batch.
Tried: the bench's language model, two of eight experts; sigmoid scores as they are with the batch's entropy at 0.001,
against softmax with the bench's balance losses. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits
from mixwell.core.evidence import Evidence, weigh


def claim(bench: Bench) -> Evidence:
    """Bits per byte of sigmoid gates with batch entropy against softmax gates."""
    gates = {"method": "top_k", "k": 2, "scores": "sigmoid", "renormalise": False}
    entropy = {"coefficient": 0.001, "rule": "batch"}
    mixture = {"router": gates, "balance": {"entropy": entropy}}
    arch = bench.arch(mixture)
    sigma = bits(bench, arch)
    softmax = bits(bench, bench.arch())
    return weigh("Sigmoid gates with batch entropy beat softmax gates with the Switch loss.", BITS, sigma, softmax,
                 note="Worse with the first seed, equal with the others; the paper trains for very much longer.")
