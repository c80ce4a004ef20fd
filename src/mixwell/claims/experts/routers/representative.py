"""Representative units: they choose better experts than the same units dealt to other experts.

Paper: CMoE: Fast Carving of Mixture-of-Experts for Efficient LLM Inference.
Tried: the bench's dense model, width 256, carved by coactivation into one shared and seven routed experts of which
three are active; bits per byte as carved, against each expert asked by its neighbour's representative. Against it: bits
per byte that are no lower.
"""

from __future__ import annotations

from mixwell.claims._conversions import bits, dense_start, made
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim

CLAIM = Claim("Experts are chosen better by their own units than by others.", BITS)
CARVED = {"num_experts": 7, "shared": 1, "split": "coactivation", "router": {"k": 3}}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte with each expert's own representative and with its neighbour's."""
    before = dense_start(bench, seed)
    carved = made(bench, "carve", before, seed, CARVED)
    tensors = dict(carved.tensors)
    for name, value in tensors.items():
        if name.endswith(("router.gate", "router.up")):
            tensors[name] = value.roll(1, 0)
    swapped = carved.derive(tensors=tensors)
    return {"method": bits(bench, carved), "baseline": bits(bench, swapped)}
