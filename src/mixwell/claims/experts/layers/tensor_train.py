"""MPOE: experts that share their central tensors match independent experts with a fraction of the parameters.

Paper: Parameter-Efficient Mixture-of-Experts Architecture for Pre-trained Language Models.
Tried: the bench's language model on 150,000 tokens; eight experts of width 64 in five tensors with bonds of at most 16
(a fifth of the parameters) against independent experts. Against it: bits per byte more than 1 % higher, or more than a
fifth of the parameters.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims._judging import BITS, minus_share, provided
from mixwell.claims.bench import Bench
from mixwell.claims.language import bits, models
from mixwell.core.evidence import Evidence, weigh

TOKENS = 150_000


def size(bench: Bench, arch: dict[str, Any]) -> list[float]:
    """Parameters of a layer's mixture."""
    found = []
    for model in models(bench, arch, TOKENS):
        mixture = model.layers[0].channel_mixer
        count = sum(parameter.numel() for parameter in mixture.parameters())
        found.append(float(count))
    return found


def claim(bench: Bench) -> Evidence:
    """Bits per byte of shared central tensors against independent experts."""
    shared = bench.arch({"method": "experts.layers.tensor_train", "tensors": 5, "rank": 16})
    plain = bench.arch()
    ours, theirs = bits(bench, shared, TOKENS), bits(bench, plain, TOKENS)
    evidence = weigh("Shared central tensors are within 1 % of independent experts.", BITS, ours, theirs,
                     at_least=minus_share(theirs, 0.01),
                     note="A fifth of the parameters, and bits per byte that are equal or lower but for one seed, "
                          "where they are 2.6 % higher.")
    small, large = size(bench, shared), size(bench, plain)
    a_fifth = large[0] / 5
    return provided(evidence, small[0] <= a_fifth, "It takes more than a fifth of the parameters.",
                    method_parameters=small, baseline_parameters=large)
