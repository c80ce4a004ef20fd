"""Expert matching: two mixtures made apart from one dense model have a better mean once their experts are paired.

Paper: none; assignment of experts after Git Re-Basin: Merging Models modulo Permutation Symmetries.
Tried: a small dense model of language upcycled twice into four experts, half of each expert's units drawn anew by
another seed, both trained on in another order; bits per byte of the mean with experts and their units matched, against
the mean as they are. Beside: matched experts with their units as they are; one model alone; and, as a control, the mean
of one model and itself with its experts shuffled, matched. Against it: bits per byte that are no lower.
"""

from __future__ import annotations

from typing import Any

import torch

from mixwell.claims._conversions import TOKENS, bits, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import module
from mixwell.claims.merge._moved import between
from mixwell.convert.upcycle import Config, upcycle
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.rng import generator

EXPERTS, RATE = 4, 4e-3
CLAIM = Claim("Matched mixtures have a better mean than mixtures as they are.", BITS)


def start(bench: Bench) -> Checkpoint:
    """The dense model that all mixtures are made of."""
    mixer = {"method": "experts.layers.swiglu", "hidden_dim": 64}
    arch = bench.arch(mixer, dim=32, num_heads=2)
    return bench.train(arch, 0, tokens=TOKENS).model.to_checkpoint()


def mixture(bench: Bench, seed: int) -> Checkpoint:
    """A mixture of the dense model, trained on."""
    config = Config(num_experts=EXPERTS, reinitialise=0.5)
    draws = generator(seed, "upcycle")
    made = upcycle(start(bench), config, draws)
    return tuned(bench, made, seed, lr=RATE)


def shuffled(checkpoint: Checkpoint, seed: int) -> Checkpoint:
    """The mixture with its experts in another order."""
    draws = generator(seed, "shuffle")
    order = torch.randperm(EXPERTS, generator=draws)
    found = dict(checkpoint.tensors)
    for name, tensor in found.items():
        of_experts = ".channel_mixer." in name and tensor.shape[0] == EXPERTS
        if of_experts:
            found[name] = tensor[order]
    return checkpoint.derive(tensors=found)


def mean(first: Checkpoint, second: Checkpoint) -> Checkpoint:
    """Of all tensors as they stand."""
    found = between(first.tensors, second.tensors, 0.5)
    return first.derive(tensors=found)


def matched(first: Checkpoint, second: Checkpoint, **options: Any) -> Checkpoint:
    """The mean with the second one's experts in the first one's order."""
    own = module("merge.match_experts")
    return own.match_experts([first, second], None, own.Config(**options), generator(0))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the matched mean, of the plain one, and of those beside."""
    first, second = mixture(bench, 2 * seed), mixture(bench, 2 * seed + 1)
    merged = {
        "method": matched(first, second),
        "baseline": mean(first, second),
        "experts alone": matched(first, second, units=False),
        "one model": first,
        "itself shuffled": matched(first, shuffled(first, seed)),
    }
    return {side: bits(bench, checkpoint) for side, checkpoint in merged.items()}
