"""Experts split between two processors: faster than the better one of them alone.

Paper: Duplex: A Device for Large Language Models with Mixture of Experts, Grouped Query Attention, and Continuous
Batching.
Tried: a layer of 64 experts, two a token, whose shares are drawn from Dirichlet(0.3), unequal as those of trained
routers are; 64 tokens a step, in one of ten steps 512 more of a prompt; 100 steps. Against the better processor for
each step as a whole. Beside: experts with equal shares. Against it: less than a tenth of the time saved. Times are
those of a roofline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.serve.processors import Config, Unit, processors, seconds

EXPERTS, STEPS, SIZE = 64, 100, 3 * 4096 * 1408
CONFIG = Config()


def alone(unit: Unit, counts: list[int]) -> float:
    """The whole layer on one processor."""
    total = 0.0
    for count in counts:
        total += seconds(unit, count, SIZE, CONFIG.number_bytes)
    return total


def times(shares_E: Tensor, draws: torch.Generator) -> tuple[float, float]:
    """(seconds of the split, of the better processor) over all steps."""
    split = layer = 0.0
    for step in range(STEPS):
        tokens = 64 + 512 * (step % 10 == 0)
        slots_N = torch.multinomial(shares_E, 2 * tokens, replacement=True, generator=draws)
        counts = torch.bincount(slots_N, minlength=EXPERTS).tolist()
        split += processors(counts, SIZE, CONFIG).seconds
        layer += min(alone(CONFIG.many, counts), alone(CONFIG.near, counts))
    return split, layer


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Seconds with unequal shares, and beside with equal ones."""
    draws = generator(seed, "processors")
    alpha_E = torch.full((EXPERTS,), 0.3)
    drawn_E = torch._standard_gamma(alpha_E, generator=draws)
    split, layer = times(drawn_E, draws)
    equal_split, equal_layer = times(torch.ones(EXPERTS), draws)
    return {"method": split, "baseline": layer, "equal split": equal_split, "equal, one processor": equal_layer}


CLAIM = Claim("A split of experts between both processors takes a tenth of the time off.", "seconds of 100 steps",
              at_least=0.1, relative=True)
