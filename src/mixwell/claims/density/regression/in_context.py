"""Transformers learn regression mixtures: their predictions lie nearer the optimal ones than ridge regression's do.

Paper: Transformers can optimally learn regression mixture models.
Tried: five linear tasks in four dimensions, noise 0.5, prompts of eight pairs; a transformer after 1,000 steps of 48
prompts, mean squared error over all positions of 1,000 fresh ones against ridge regression on the pairs before. Beside
it: the optimal predictions (exponential weights), and the squared distance to them over that to ridge's. Against it: an
error that is no smaller.
"""

from __future__ import annotations

import torch

from mixwell.claims._judging import beside
from mixwell.claims._series import said, series
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find
from mixwell.core.rng import generator

TASKS, DIM, EXAMPLES, SIGMA, STEPS, BATCH = 5, 4, 8, 0.5, 1000, 48


def squared(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared difference."""
    return (found - wanted).square().mean()


def measure(seed: int) -> tuple[float, float, float, float]:
    """Errors of the transformer, of ridge regression and of the optimal predictions, and the ratio of distances."""
    module = find("density.regression.in_context").module()
    source = generator(seed, "regression mixture")
    tasks = torch.randn(TASKS, DIM, generator=source)
    model = module.InContextRegression(module.Config(dim=DIM, max_examples=EXAMPLES), source)
    for _ in module.train(model, tasks, SIGMA, steps=STEPS, batch=BATCH, lr=2e-3, generator=source):
        pass
    x, y = module.draw_prompts(1000, EXAMPLES, tasks, SIGMA, source)
    with torch.no_grad():
        found = model(x, y)
    best = module.exponential_weights(x, y, tasks, SIGMA)
    other = module.ridge_predictions(x, y, SIGMA**2)
    nearer = squared(found, best) / squared(found, other)
    errors = [squared(guess, y) for guess in (found, other, best)]
    ours, ridge, optimal = map(float, errors)
    return ours, ridge, optimal, float(nearer)


def claim(bench: Bench) -> Evidence:
    """Mean squared error over all positions of a prompt, against ridge regression on the pairs before."""
    errors, ridge, oracle, distance = series(bench, measure)
    evidence = weigh("A trained transformer predicts regression mixtures nearly as well as exponential weights, better "
                     "than ridge regression", "mean squared error", errors, ridge,
                     note=f"optimal {said(oracle, 3)}; squared distance to the optimal predictions over that to "
                          f"ridge's {said(distance)}; {STEPS} steps of {BATCH} prompts")
    return beside(evidence, **{"optimal": oracle, "distance ratio": distance})
