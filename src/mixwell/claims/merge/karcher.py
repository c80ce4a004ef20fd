"""Karcher mean: of several nets, it is nearer to all directions than the plain mean, and merges them better.

Paper: none; mergekit's Karcher mean, after Karcher 1977, "Riemannian center of mass and mollifier smoothing".
Tried: a small net after 40 steps on the digits, tuned on five pairs of digits apart; accuracy on all ten of the Karcher
mean against the plain mean, each moved along its change by the best of five factors on validation rows; and the sum of
squared angles to the nets, as mean over tensors. Against it: an accuracy that is no higher, or angles that are no less.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.merge._digits import Tensors, Tuned, best, digits, fresh, merged, tuned
from mixwell.claims.merge._moved import between

FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0)
EARLY, STEPS, RATE = 40, 60, 3e-3
CLAIM = Claim("The Karcher mean of nets beats their plain mean.", "accuracy on all ten digits, or squared angles",
              quantity="accuracy", lower_is_better=False, provided=(Comparison(quantity="angles"),))


def pairs(seed: int) -> Tuned:
    """A net that was left early, and five fine-tunes of it on two digits each."""
    split = digits(seed)
    base = tuned(fresh(seed), split.train, seed, steps=EARLY)
    groups = split.train.y // 2
    parts = [split.train.of(groups == place) for place in range(5)]
    models = [tuned(base, part, seed, steps=STEPS, lr=RATE) for part in parts]
    return Tuned([split], base, models)


def angles(mean: Tensors, models: list[dict[str, Tensor]]) -> float:
    """Sum of squared angles from the mean to the nets, as mean over tensors."""
    total = 0.0
    for name, tensor in mean.items():
        own = tensor.double().flatten()
        others = torch.stack([model[name] for model in models]).double()
        cosines = torch.cosine_similarity(own, others.flatten(1), dim=1)
        found = cosines.clamp(-1, 1).acos()
        total += float(found.square().sum())
    return total / len(mean)


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Accuracies and squared angles of both means."""
    task = pairs(seed)
    found = {}
    for side, name in (("method", "karcher"), ("baseline", "linear")):
        mean = merged(name, task)

        moved = functools.partial(between, task.base, mean)
        accuracy = best(moved, FACTORS, task)
        found[side] = {"accuracy": accuracy, "angles": angles(mean, task.models)}
    return found
