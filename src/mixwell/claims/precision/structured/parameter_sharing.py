"""Random parameter sharing: at a hundredth of the numbers a wide net beats a small one of as many.

Paper: In defense of parameter sharing for model-compression.
Tried: handwritten digits, 64-256-256-10 reading its 84,480 entries from 845 numbers, against a dense net 64-10-10-10 of
840; 300 steps of descent with momentum, learning rates of both tuned alike. Beside: as many of the wide net's entries,
drawn at random, trained alone. Against it: an accuracy that is no higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.precision._digit_nets import WHOLE, accuracy, descend, digits, net

WIDE, SMALL = (64, 256, 256, 10), (64, 10, 10, 10)
SHARED = {"method": "parameter_sharing", "ratio": 0.01}
SPARSE = {"method": "ssvi", "density": 0.01, "drop": 0.0, "kl": 0.0, "start_std": 1e-6}  # a set that stays, no noise
RATES = (0.03, 0.1, 0.3)


def measure(bench: Bench, seed: int, *, lr: float, sizes: Sequence[int], spec: Mapping[str, Any]) -> float:
    """Accuracy after training."""
    data = digits(seed)
    model = net(seed, sizes, spec)
    trained = descend(model, data, seed, steps=300, lr=lr, momentum=0.9)
    return accuracy(trained, data)


CLAIM = Claim(
    "A wide net of shared numbers beats a small net of as many.", "share of test images that are right",
    lower_is_better=False,
    sides={"method": Side(measure, {"sizes": WIDE, "spec": SHARED}, {"lr": RATES}),
           "baseline": Side(measure, {"sizes": SMALL, "spec": WHOLE}, {"lr": RATES}),
           "sparse": Side(measure, {"sizes": WIDE, "spec": SPARSE}, {"lr": RATES})})
