"""Ratatouille: fine-tunes that begin from other tasks average to a net that stands new conditions better.

Paper: Model Ratatouille: Recycling Diverse Models for Out-of-Distribution Generalization.
Tried: a small net trained on digits; auxiliaries tuned on shifted, inverted and noisy ones; six trainings on digits of
little noise, from the auxiliaries in turn or all from the first net, averaged; accuracy on digits of much noise. All
share the head. Against it: an accuracy that is no higher than that of the soup from one start. Beside it: the mean of
the single nets.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Rows, Tensors, accuracy, digits, fresh, module, tuned
from mixwell.core.rng import generator

RUNS, RATES = 6, (5e-4, 1e-3, 2e-3)
CLAIM = Claim("Diverse starts average to a net that generalises better.", "accuracy under noise not trained on",
              lower_is_better=False)


def noisy(rows: Rows, spread: float, seed: int) -> Rows:
    """The images with noise of that spread."""
    draws = generator(seed, "noise")
    noise = torch.randn(rows.x.shape, generator=draws)
    return rows._replace(x=rows.x + spread * noise)


def auxiliaries(start: Tensors, rows: Rows, seed: int) -> list[dict[str, torch.Tensor]]:
    """Fine-tunes on images that are shifted, inverted, and noisy."""
    moved = rows.x.roll(1, 1)
    shifted = rows._replace(x=moved)
    inverted = rows._replace(x=1 - rows.x)
    disturbed = noisy(rows, 0.5, seed)
    tasks = [shifted, inverted, disturbed]
    return [tuned(start, task, seed, steps=40, lr=5e-4) for task in tasks]


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of the average from several starts, of that from one, and of single nets from one."""
    own = module("merge.composition.ratatouille")
    split = digits(seed)
    start = tuned(fresh(seed), split.train, seed, steps=80)
    target = noisy(split.train, 0.2, seed)
    unseen = noisy(split.test, 0.6, seed + 1)
    single: list[float] = []

    def tune(begun: Tensors, run: int) -> Tensors:
        rate = RATES[run % len(RATES)]
        net = tuned(begun, target, seed + run, steps=80, lr=rate)
        single.append(accuracy(net, unseen))
        return net

    config = own.Config(runs=RUNS)
    draws = generator(seed, "ratatouille")
    soup = own.ratatouille([start], tune, config, draws)
    alone = sum(single) / RUNS
    mixed = own.ratatouille(auxiliaries(start, target, seed), tune, config, draws)
    return {"method": accuracy(mixed, unseen), "baseline": accuracy(soup, unseen), "single nets": alone}
