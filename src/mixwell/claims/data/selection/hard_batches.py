"""Training again on the batches of highest loss comes further in as many steps than training on all again.

Paper: Can we learn better with hard samples?
Tried: digits of which classes 0 to 4 are cut to a tenth, batches of 16, a perceptron of 32 units, 400 steps; mean error
over the classes of the test rows. Method: after each epoch a second pass over the hardest fifth. Baseline: over all.
Learning rates tuned for both. Against it: an error that is no lower.
"""

from __future__ import annotations

import numpy as np
import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.data._learning import Labelled, digits, perceptron, right, step
from mixwell.core.rng import generator
from mixwell.data.pool import Pool
from mixwell.data.selection.hard_batches import Config, hard_batches

STEPS, BATCH = 400, 16


def unequal(data: Labelled, draws: torch.Generator) -> Labelled:
    """A tenth of the rows of classes 0 to 4, and all others."""
    part = torch.rand(len(data.y), generator=draws)
    kept = (data.y > 4) | (part < 0.1)
    return Labelled(data.x[kept], data.y[kept])


def measured(bench: Bench, seed: int, *, share: float, lr: float) -> float:
    """Mean error over the classes after so many steps, of both passes together."""
    draws = generator(seed, "hard batches")
    rng = np.random.default_rng(seed)
    learned, test = digits(seed)
    some = unequal(learned, draws)
    network = perceptron(draws)
    config = Config(share=share)
    left = STEPS
    while left > 0:
        order = torch.randperm(len(some.y), generator=draws)
        batches = [some.rows(places) for places in order.split(BATCH)][:left]
        losses = [step(network, batch, lr) for batch in batches]
        left -= len(batches)
        rows = np.zeros((len(losses), 1))
        pool = Pool.measured(rows, np.array(losses))
        chosen = hard_batches(pool, config, rng)
        for place in chosen.indices_S[:left].tolist():
            step(network, batches[place], lr)
        left -= len(chosen.indices_S)
    return balanced(right(network, test), test.y)


def balanced(right_N: torch.Tensor, y_N: torch.Tensor) -> float:
    """Mean over the classes of the share that is told wrongly."""
    shares = []
    for label in range(10):
        own = right_N[y_N == label].double()
        shares.append(own.mean())
    share = torch.stack(shares).mean()
    return 1 - share.item()


GRID = {"lr": [0.1, 0.3, 1.0]}
CLAIM = Claim("Hard batches again come further than all batches again.", "mean error over the classes",
              sides={"method": Side(measured, {"share": 0.2}, GRID), "baseline": Side(measured, {"share": 1.0}, GRID)})
