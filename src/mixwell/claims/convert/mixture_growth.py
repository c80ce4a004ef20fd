"""MixtureGrowth: units made of trained templates are a better start for a wider block than random ones.

Paper: MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters.
Tried: the bench's decoder with blocks of width 128 made of two templates, after 200,000 tokens; written out as dense
blocks with 128 more units from new coefficients, then 60,000 tokens, against 128 units drawn with the std of fresh
weights. Beside: new units that give nothing at first (scale 0). Each trains at the best of three rates. Against it:
bits per byte that are no lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixwell.claims._conversions import TOKENS, bits, made, tuned
from mixwell.claims._judging import BITS
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.checkpoint import Checkpoint, channel_mixers, with_channel_mixers
from mixwell.core.rng import generator, normal

CLAIM = Claim("Units of trained templates start a wider block better than random ones.", BITS)
WIDTH = 128
TEMPLATES = {"method": "experts.layers.templates", "hidden_dim": WIDTH}
RATES = (1e-3, 2e-3, 4e-3)
STD = 0.02  # of fresh weights


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Bits per byte of the wider models after training on."""
    trained = bench.train(bench.arch(channel_mixer=TEMPLATES), seed, tokens=TOKENS)
    small = trained.model.to_checkpoint()
    grown = made(bench, "mixture_growth", small, seed, {"dense": True})
    silent = made(bench, "mixture_growth", small, seed, {"dense": True, "scale": 0.0})
    plain = made(bench, "mixture_growth", small, seed, {"dense": True, "blocks": 0})
    starts = {"method": grown, "baseline": with_random_units(plain, seed), "silent": silent}
    return {name: best_of(bench, start, seed) for name, start in starts.items()}


def best_of(bench: Bench, before: Checkpoint, seed: int) -> float:
    """Bits per byte after training on, at the best of the rates."""
    found = [bits(bench, tuned(bench, before, seed, lr=lr)) for lr in RATES]
    return min(found)


def with_random_units(before: Checkpoint, seed: int) -> Checkpoint:
    """The dense model with as many hidden units more in each block, freshly drawn."""
    draws = generator(seed, "random units")
    tensors = dict(before.tensors)
    for name, value in before.tensors.items():
        if name.endswith("gate_up_proj"):
            halves = [with_fresh(half, 0, draws) for half in value.chunk(2)]
            tensors[name] = torch.cat(halves)
        elif name.endswith("down_proj"):
            tensors[name] = with_fresh(value, 1, draws)
    return before.derive(arch=twice_as_wide(before.arch), tensors=tensors)


def with_fresh(weight: Tensor, along: int, draws: torch.Generator) -> Tensor:
    """The weight with as much again of fresh draws behind it."""
    fresh = normal(tuple(weight.shape), STD, draws)
    return torch.cat([weight, fresh], dim=along)


def twice_as_wide(arch: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture with dense blocks of twice the width."""
    specs = channel_mixers(arch)
    wider = [{**spec, "hidden_dim": 2 * spec["hidden_dim"]} for spec in specs]
    return with_channel_mixers(arch, wider)
