"""Task-aware gates: a new task that takes its gate from related seen tasks learns from fewer examples.

Paper: Sparsely Activated Mixture-of-Experts are Robust Multi-Task Learners.
Tried: nine seen tasks in three families of similar linear maps and one new task of the first family; a gate on the
task's embedding, top-2 of eight experts. The new embedding is the mean of its family's, against the random start of a
task never seen; both are then fine-tuned on 64 examples for 20 steps at the best of three rates. Against it: an error
on the new task that is no lower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixwell.claims._judging import ERROR
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import DIM, TOP2, Batch, Draw, build, error, fit, fixed, mapped
from mixwell.claims.grids import RATES
from mixwell.core.rng import generator

SEEN, NEW = 9, 9


def families(seed: int) -> Tensor:
    """Maps of ten tasks; task t belongs to family t mod 3, the last one to the first family."""
    draws = generator(seed, "families")
    common = torch.randn(3, DIM, DIM, generator=draws)
    own = torch.randn(SEEN + 1, DIM, DIM, generator=draws)
    task = torch.arange(SEEN + 1)
    maps = common[task % 3] + 0.3 * own
    variance = 1.09 * DIM
    return maps / variance**0.5


def drawn_from(maps: Tensor, low: int, high: int) -> Draw:
    """Tokens of the tasks `low` up to `high`."""

    def draw(count: int, draws: torch.Generator) -> Batch:
        labels = torch.randint(low, high, (count,), generator=draws)
        z = torch.randn(count, DIM, generator=draws)
        return Batch(z, mapped(maps, labels, z), labels)

    return draw


def measure(bench: Bench, seed: int, *, adopt: bool, lr: float) -> float:
    """Error on the new task after seeing 64 of its examples."""
    maps = families(seed)
    router = {"method": "conditioned", "condition": "label", "labels": SEEN + 1}
    old = drawn_from(maps, 0, SEEN)
    layer = build(seed, {**TOP2, "router": router}, problem=old)
    fit(layer, old, seed)
    if adopt:
        layer.router.adopt(NEW, [0, 3, 6])
    new = drawn_from(maps, NEW, NEW + 1)
    few = fixed(new, seed, 64)
    fit(layer, few, seed, steps=20, lr=lr)
    return error(layer, new, seed)


CLAIM = Claim(
    "A new task learns faster with the gate of related tasks.", f"{ERROR}, of the new task",
    sides={"method": Side(measure, {"adopt": True}, {"lr": RATES}),
           "baseline": Side(measure, {"adopt": False}, {"lr": RATES})})
