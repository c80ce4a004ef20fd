"""Hecate: copies placed before each step by the last one's load balance workers better than copies that stand.

Paper: Hecate: Unlocking Efficient Sparse Model Training via Fully Sharded Sparse Data Parallelism.
Tried: loads of 32 experts on eight workers of six slots, skewed (Zipf, exponent 1) and drifting, with an order of
experts that is drawn anew every 200 of 800 steps; the busiest worker's tokens over the mean, mean over steps. Against
it: copies placed every 100 steps by the load of the 100 before, in as many slots. Beside: no copies at all, and copies
by the step's own load, which nobody knows in time. Bytes of moving weights are not counted. Against it: a ratio that is
no lower.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.rng import generator
from mixwell.parallel.sharded_experts import destinations, placed

WORKERS, EXPERTS, SLOTS = 8, 32, 6
STEPS, DOMAIN, STANDING = 800, 200, 100
TOKENS = 2048  # of a worker in a step
EVERY = 7  # steps between those that are weighed

CLAIM = Claim("Copies placed by the last step's load balance workers better than copies that stand.",
              "busiest worker's tokens over the mean", at_least=0.02)


def loads(seed: int) -> Iterator[Tensor]:
    """Tokens that each worker sends to each expert, int64 [W, E], step by step."""
    draws = generator(seed, "loads")
    ranks = torch.arange(EXPERTS) + 1.0
    popular = -ranks.log()
    drift = torch.zeros(EXPERTS)
    order = torch.arange(EXPERTS)
    for step in range(STEPS):
        if step % DOMAIN == 0:
            order = torch.randperm(EXPERTS, generator=draws)
        drift *= 0.98
        moved = torch.randn(EXPERTS, generator=draws)
        drift += 0.1 * moved
        wanted = popular[order] + drift
        yield sent(wanted.softmax(0), draws)


def sent(chances_E: Tensor, draws: torch.Generator) -> Tensor:
    """Tokens that each worker sends to each expert, int64 [W, E]."""
    own = chances_E.expand(WORKERS, -1)
    drawn = torch.multinomial(own, TOKENS, replacement=True, generator=draws)
    counts = [torch.bincount(row, minlength=EXPERTS) for row in drawn]
    return torch.stack(counts)


def busiest(counts_WE: Tensor, there_WE: Tensor) -> float:
    """The busiest worker's tokens over the mean."""
    goes_WE = destinations(counts_WE, there_WE)
    places = goes_WE.flatten()
    tokens = counts_WE.flatten()
    taken_W = torch.bincount(places, tokens)
    most = taken_W.max()
    return float(most) / TOKENS


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """The mean over steps of each side."""
    even = torch.ones(EXPERTS).double()
    none = placed(even, WORKERS, EXPERTS // WORKERS)
    standing, seen, last = none, even, even
    found: dict[str, list[float]] = {"method": [], "baseline": [], "no copies": [], "foretold": []}
    for step, counts_WE in enumerate(loads(seed)):
        load_E = counts_WE.sum(0).double()
        if step % STANDING == 0:
            standing = placed(seen, WORKERS, SLOTS)
            seen = torch.zeros_like(even)
        if step % EVERY == 0:
            plans = [placed(last, WORKERS, SLOTS), standing, none, placed(load_E, WORKERS, SLOTS)]
            for ratios, there_WE in zip(found.values(), plans):
                ratios.append(busiest(counts_WE, there_WE))
        seen, last = seen + load_E, load_E
    return {name: statistics.fmean(ratios) for name, ratios in found.items()}
