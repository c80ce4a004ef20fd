"""Nested experts: with the full block for the patches that need it most, half the compute keeps the accuracy.

Paper: Mixture of Nested Experts: Adaptive Processing of Visual Tokens.
Tried: scikit-learn's digits as sixteen patches of two by two, two blocks of attention and mixer of width 32; four
nested experts of hidden width 64 at a budget of 0.5, three growths of the reward for larger ones, against the full
block; 200 steps of 128 images; accuracy on 597 test images. Against it: an accuracy more than one point lower than the
full block's.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.experts._digits import read, two_mixers
from mixwell.claims.experts._synthetic import FINE
from mixwell.claims.grids import RATES
from mixwell.core.rng import generator

FULL = [0.0, 0.0, 0.0, 1.0]  # all patches to the full block


def measure(bench: Bench, seed: int, *, lr: float, shares: Sequence[float] | None = None, delta: float = 2.0) -> float:
    """Accuracy of nested experts with this share of the patches for each, smallest first; None: as for half."""
    draws = generator(seed, "reader")
    mixers = two_mixers("experts.layers.nested", draws, hidden_dim=64, budget=0.5, delta=delta)
    for mixer in mixers:
        mixer.capacities = shares or mixer.capacities
    return read(seed, mixers, draws, steps=200, lr=lr)


HALF = {"lr": RATES, "delta": (1.5, 2.0, 3.0)}

CLAIM = Claim(
    "Half the compute is within one point of the full block.", "accuracy on test images", lower_is_better=False,
    at_least=-0.01,
    sides={"method": Side(measure, {}, HALF), "baseline": Side(measure, {"shares": FULL}, FINE)})
