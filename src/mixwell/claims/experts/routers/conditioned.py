"""Uni-Perceiver-MoE: gates that read a task's attributes resolve the conflict of tasks better than gates on tokens.

Paper: Uni-Perceiver-MoE: Learning Sparse Generalist Models with Conditional MoEs.
Tried: eight tasks that share their inputs and ask for unrelated linear maps; every token carries its task's three bits,
so that a token gate can read them too. Attribute gate against token gate, both top-2 of eight experts.
Against it: a held-out error that is no lower.
"""

from __future__ import annotations

import torch

from mixwell.claims._judging import ERROR
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._synthetic import BALANCED, DIM, TOP2, Batch, Draw, mapped, on_problem
from mixwell.core.rng import generator

CODES = tuple(tuple(task >> bit & 1 for bit in range(3)) for task in range(8))
SHARED = DIM - 3  # columns that say nothing of the task


def tasks(seed: int) -> Draw:
    """Thirteen shared inputs and the three bits of the task, which picks the map."""
    draws = generator(seed, "tasks")
    drawn = torch.randn(8, DIM, SHARED, generator=draws)
    maps = drawn / SHARED**0.5
    bits = 2.0 * torch.tensor(CODES) - 1

    def draw(count: int, draws: torch.Generator) -> Batch:
        labels = torch.randint(8, (count,), generator=draws)
        z = torch.randn(count, SHARED, generator=draws)
        labelled = torch.cat([z, bits[labels]], 1)
        y = mapped(maps, labels, z)
        return Batch(labelled, y, labels)

    return draw


ROUTERS = {"method": {"method": "conditioned", "condition": "attribute", "codes": CODES},
           "baseline": {"method": "conditioned", "condition": "token"}}

CLAIM = Claim(
    "Attribute gates resolve task interference better than token gates.", ERROR, quantity="error",
    sides={name: Side(on_problem, {**TOP2, "problem": tasks, "router": router}, BALANCED)
           for name, router in ROUTERS.items()})
