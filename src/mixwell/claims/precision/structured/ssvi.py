"""SSVI: a sparse posterior whose set moves is more accurate than one whose random set stays.

Paper: Training Bayesian Neural Networks with Sparse Subspace Variational Inference.
Tried: handwritten digits, 64-128-128-10, the first map dense, 3 % of the others active; 400 steps, fourteen exchanges,
against none, learning rates of both tuned alike. Beside: a posterior over all weights.
Against it: an accuracy that is no higher.
"""

from __future__ import annotations

from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._digit_nets import TRAINING, WHOLE, accuracy, descend, digits, net

SIZES = (64, 128, 128, 10)
STEPS = 400
USUAL = {"method": "ssvi", "steps": STEPS, "every": 20, "ramp": 200, "kl": 0.01 / TRAINING}
RATES = (0.03, 0.1, 0.3)


def measure(bench: Bench, seed: int, *, lr: float, density: float = 0.03, **options: Any) -> float:
    """Accuracy of the posterior's mean after training."""
    data = digits(seed)
    sparse = {**USUAL, "density": density, **options}
    model = net(seed, SIZES, [WHOLE, sparse, sparse])
    trained = descend(model, data, seed, steps=STEPS, lr=lr, momentum=0.9)
    return accuracy(trained, data)


CLAIM = Claim(
    "A sparse set that moves beats one that stays.", "share of test images that are right", lower_is_better=False,
    sides={"method": Side(measure, {}, {"lr": RATES}),
           "baseline": Side(measure, {"drop": 0.0}, {"lr": RATES}),
           "dense": Side(measure, {"density": 1.0, "drop": 0.0}, {"lr": RATES})})
