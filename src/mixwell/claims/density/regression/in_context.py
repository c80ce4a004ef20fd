"""Transformers learn regression mixtures: their predictions lie nearer the optimal ones than ridge regression's do.

Paper: Transformers can optimally learn regression mixture models.
Tried: five linear tasks in four dimensions, noise 0.5, prompts of eight pairs; a transformer after 1,000 steps of 48
prompts, mean squared error over all positions of 1,000 fresh ones against ridge regression on the pairs before,
learning rate and ridge tuned. Beside it: the optimal predictions (exponential weights), and squared distances to them.
Against it: an error that is no smaller.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import RATES
from mixwell.core.registry import find
from mixwell.core.rng import generator

TASKS, DIM, EXAMPLES, SIGMA, STEPS, BATCH = 5, 4, 8, 0.5, 1000, 48
METHOD = "density.regression.in_context"


def squared(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared difference."""
    return (found - wanted).square().mean()


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tasks (TASKS, DIM), and prompts of them: inputs and outcomes."""
    source = generator(seed, "regression mixture")
    tasks = torch.randn(TASKS, DIM, generator=source)
    x, y = find(METHOD).module().draw_prompts(1000, EXAMPLES, tasks, SIGMA, source)
    return tasks, x, y


def judged(found: torch.Tensor, seed: int) -> dict[str, float]:
    """Mean squared error of predictions, and their squared distance to the optimal ones."""
    tasks, x, y = problem(seed)
    best = find(METHOD).module().exponential_weights(x, y, tasks, SIGMA)
    error, distance = squared(found, y), squared(found, best)
    return {"error": float(error), "distance": float(distance)}


def transformer(bench: Bench, seed: int, *, lr: float) -> dict[str, float]:
    """Of a transformer that is trained on fresh prompts of the same tasks."""
    module = find(METHOD).module()
    tasks, x, y = problem(seed)
    source = generator(seed, "training")
    config = module.Config(dim=DIM, max_examples=EXAMPLES)
    model = module.InContextRegression(config, source)
    for _ in module.train(model, tasks, SIGMA, steps=STEPS, batch=BATCH, lr=lr, generator=source):
        pass
    with torch.no_grad():
        found = model(x, y)
    return judged(found, seed)


def ridge(bench: Bench, seed: int, *, penalty: float) -> dict[str, float]:
    """Of ridge regression on the pairs before."""
    _, x, y = problem(seed)
    found = find(METHOD).module().ridge_predictions(x, y, penalty)
    return judged(found, seed)


def optimal(bench: Bench, seed: int) -> dict[str, float]:
    """Of exponential weights, which know the tasks."""
    tasks, x, y = problem(seed)
    found = find(METHOD).module().exponential_weights(x, y, tasks, SIGMA)
    return judged(found, seed)


PENALTIES = (0.5 * SIGMA**2, SIGMA**2, 2 * SIGMA**2)

CLAIM = Claim("A trained transformer predicts regression mixtures better than ridge regression.", "mean squared error",
              quantity="error",
              sides={"method": Side(transformer, {}, {"lr": RATES}),
                     "baseline": Side(ridge, {}, {"penalty": PENALTIES}), "optimal": Side(optimal)})
