"""Rehearsal drawn by what is being forgotten keeps more of the old task than rehearsal drawn evenly.

Paper: An Efficient Rehearsal Scheme for Catastrophic Forgetting Mitigation during Multi-stage Fine-tuning.
Tried: a perceptron that learned all digits, then 300 steps on digits 0 to 3 with their pixels turned round and new
labels, batches of 28 new rows and 4 old ones; accuracy on old test rows. Cells are the ten old classes. Baseline: cells
by their size. Learning rates tuned for both. Against it: an accuracy that is no higher, or one on new rows lower by
0.02.
"""

from __future__ import annotations

import numpy as np
import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side, Untestable, no_worse
from mixwell.claims.data._learning import Labelled, accuracy, digits, perceptron, right, step
from mixwell.core.rng import generator
from mixwell.data.online.rehearsal import Config, Rehearsal
from mixwell.data.rule import Batch, Online

CELLS, STEPS, NEW, OLD = 10, 300, 28, 4


def turned(data: Labelled) -> Labelled:
    """Digits 0 to 3 upside down, labelled the other way round."""
    few = data.rows(data.y < 4)
    return Labelled(few.x.flip(1), 3 - few.y)


def measured(bench: Bench, seed: int, *, lr: float, guided: bool = True) -> dict[str, float]:
    """Accuracy on old and on new test rows."""
    learned, test = digits(seed)
    fresh, fresh_test = turned(learned), turned(test)
    draws = generator(seed, "rehearsal")
    network = perceptron(draws)
    for _ in range(400):
        some = torch.randint(len(learned.y), (32,), generator=draws)
        step(network, learned.rows(some), 0.2)
    before = accuracy(network, test)
    knew = right(network, learned)
    online = Online(Rehearsal(CELLS, Config(memory=0.95)))
    even_D = torch.ones(CELLS)
    for _ in range(STEPS):
        weight_D = torch.tensor(online.weights_D) if guided else even_D
        weight_N = weight_D[learned.y].double()
        places = torch.multinomial(weight_N, OLD, replacement=True, generator=draws)
        old = learned.rows(places)
        batch = Batch(old.y.numpy(), np.zeros(OLD), None, knew[places].numpy(), right(network, old).numpy())
        online.update(batch)
        rows = torch.randint(len(fresh.y), (NEW,), generator=draws)
        new = fresh.rows(rows)
        both = Labelled(torch.cat([new.x, old.x]), torch.cat([new.y, old.y]))
        step(network, both, lr)
    kept = accuracy(network, test)
    if before < 0.8 or kept > before - 0.02:
        raise Untestable("the network hardly forgets")
    return {"old": kept, "new": accuracy(network, fresh_test)}


GRID = {"lr": [0.05, 0.1, 0.2]}
CLAIM = Claim("Rehearsing what is forgotten keeps more.", "accuracy on the old task", quantity="old",
              lower_is_better=False, provided=(no_worse("new", 0.02, relative=False, lower_is_better=False),),
              sides={"method": Side(measured, grid=GRID), "baseline": Side(measured, {"guided": False}, GRID)})
