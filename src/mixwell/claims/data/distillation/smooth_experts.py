"""Smooth experts, a representative start and matching between make better images than plain trajectory matching.

Paper: Efficient Dataset Distillation through Alignment with Smooth and High-Quality Expert Trajectories.
Tried: handwritten digits in one image a class, a perceptron of 32 units, two experts of twelve epochs, 100 rounds; test
accuracy of two fresh networks. Baseline: the same matching with plain experts, from random real images, of the
end alone; the pixels' step is tuned for both, and the real images nearest to the centres are measured beside them.
Against it: an accuracy that is no higher, or below that of these real images.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.data.distillation._digits import images, perceptron, reached
from mixwell.core.rng import generator
from mixwell.data.compact import Training
from mixwell.data.distillation.smooth_experts import Config, smooth_experts

SIZES: dict[str, Any] = {"per_class": 1, "experts": 2, "epochs": 12, "expert_lr": 0.02, "expert_batch": 64, "lr": 0.02,
                         "rounds": 100}
PLAIN = {"start": "real", "penalty": 0.0, "clip": False, "between": False, "perturb": 0.0, "balance": False}


def measured(bench: Bench, seed: int, **options: Any) -> float:
    """Accuracy of what learned from the images alone."""
    learned, test = images(seed)
    config = Config(**{**SIZES, **options})
    draws = generator(seed, "smooth experts")
    made = smooth_experts(learned, perceptron, config, draws)
    training = Training(steps=150)
    return reached(made, test, perceptron, training, range(2))


GRID = {"image_lr": [0.3, 1.0, 3.0]}
CLAIM = Claim(
    "Smooth experts make images that teach more.", "test accuracy", lower_is_better=False,
    provided=(Comparison(baseline="real", lower_is_better=False),),
    sides={"method": Side(measured, grid=GRID), "baseline": Side(measured, PLAIN, GRID),
           "real": Side(measured, {"rounds": 0})})
