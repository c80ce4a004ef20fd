"""Transformers learn regression mixtures: their predictions lie nearer the optimal ones than ridge regression's do."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find
from mixwell.core.rng import generator

TASKS, DIM, EXAMPLES, SIGMA, STEPS, BATCH = 5, 4, 8, 0.5, 1000, 48


def claim(bench: Any) -> Evidence:
    """Mean squared error over all positions of a prompt, against ridge regression on the pairs before."""
    method, errors, ridge, oracle, distance = find("density.regression.in_context"), [], [], [], []
    module = method.module()
    for seed in bench.seeds:
        source = generator(seed, "regression mixture")
        tasks = torch.randn(TASKS, DIM, generator=source)
        model = module.InContextRegression(module.Config(dim=DIM, max_examples=EXAMPLES), source)
        deque(module.train(model, tasks, SIGMA, steps=STEPS, batch=BATCH, lr=2e-3, generator=source), maxlen=0)
        x, y = module.draw_prompts(1000, EXAMPLES, tasks, SIGMA, source)
        with torch.no_grad():
            found = model(x, y)
        best, other = module.exponential_weights(x, y, tasks, SIGMA), module.ridge_predictions(x, y, SIGMA**2)
        errors.append(float((found - y).square().mean()))
        ridge.append(float((other - y).square().mean()))
        oracle.append(float((best - y).square().mean()))
        distance.append(float((found - best).square().mean() / (found - other).square().mean()))
    evidence = weigh("A trained transformer predicts regression mixtures nearly as well as exponential weights, better "
                     "than ridge regression", "mean squared error", errors, ridge,
                     note=f"optimal {[round(v, 3) for v in oracle]}; squared distance to the optimal predictions over "
                     f"that to ridge's {[round(v, 2) for v in distance]}; {STEPS} steps of {BATCH} prompts")
    evidence.values.update({"optimal": oracle, "distance ratio": distance})
    return evidence
