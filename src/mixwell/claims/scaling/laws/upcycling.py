"""Upcycling: the more its dense parent was trained, the slower an upcycled mixture gains from its own tokens.

Paper: Scaling Laws for Upcycling Mixture-of-Experts Language Models.
Tried: 40 runs that follow the paper's form (coefficients of our own, the paper's could not be checked) with 0.5 %
noise; the law against itself without the interaction a3, both fitted to the four fifths of fewest tokens and scored on
the rest: whether so many runs tell the interaction. Against it: an error that is not a tenth lower.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.scaling.laws._planted import STARTS, law_of, planted
from mixwell.scaling.law import Law, Ranges
from mixwell.scaling.runs import Runs

CLAIM = Claim("Parent's and own tokens interact.", "error of log loss on the dearest runs in percent",
              at_least=0.1, relative=True)


class Apart(Law):
    """A D1^-a1 D2^-a2 + E."""

    columns = ("d1", "d2")
    ranges: ClassVar[Ranges] = {
        "A": (0.0, 12.0),
        "E": (-2.0, 1.5),
        "a1": (0.0, 0.5),
        "a2": (0.0, 0.8),
    }
    prefactors = frozenset({"A", "E"})

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """log A - a1 log D1 - a2 log D2, and log E."""
        log_1, log_2 = (np.log(runs[name]) for name in self.columns)
        tokens = {"A": 1.0, "a1": -log_1, "a2": -log_2}
        return self.linear(tokens, {"E": 1.0})


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """With the interaction and without."""
    runs = planted("upcycling", seed)
    without = Apart(starts=STARTS)
    return {"method": runs.error(law_of("upcycling")), "baseline": runs.error(without)}
