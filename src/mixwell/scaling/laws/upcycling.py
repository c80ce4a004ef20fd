"""The loss of an upcycled mixture over the tokens of its dense parent and its own.

**Equation:** L(D1, D2) = A D1^(-a1) D2^(-a2 + a3 ln D1) + E. From scratch L(D2) = A' D2^(-b) + E': above the D2* where
    both are equal, the mixture is better trained from scratch.
**Shapes:** columns `d1` (tokens of the dense parent, spent already), `d2` (tokens of the mixture), above 0.
**Reference:** Liew, Kato, Takase 2025 (2502.03009).
**Differs:** the paper's coefficients are not given here, since none could be checked; terms in model size are left out.
**Fails when:** D1 = 0 (that is the law from scratch), or experts stay copies of one another, so that nothing is
    upcycled.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.law import Curve, Law, Ranges
from mixwell.scaling.runs import Runs, log_uniform


@method(title="Upcycling law", year=2025, tags={"law"},
        paper="Scaling Laws for Upcycling Mixture-of-Experts Language Models")
class Upcycling(Law):
    """One term whose slope in the mixture's tokens flattens with its parent's tokens, and a constant."""

    columns = ("d1", "d2")
    ranges: ClassVar[Ranges] = {
        "A": (0.0, 12.0),
        "E": (-2.0, 1.5),
        "a1": (0.0, 0.5),
        "a2": (0.0, 0.8),
        "a3": (-0.03, 0.03),
    }
    prefactors = frozenset({"A", "E"})

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """log A - a1 log D1 - a2 log D2 + a3 log D1 log D2, and log E."""
        log_1 = np.log(runs["d1"])
        log_2 = np.log(runs["d2"])
        tokens = {"A": 1.0, "a1": -log_1, "a2": -log_2, "a3": log_1 * log_2}
        return self.linear(tokens, {"E": 1.0})
    def flops_per_token(self, runs: Runs) -> np.ndarray:
        """What orders the runs by cost: all tokens."""
        return runs["d1"] + runs["d2"]


def threshold(upcycled: Curve, scratch: Curve, d1: Any, low: float = 1e6, high: float = 1e15) -> float:
    """D2*: tokens from which training from scratch (a law of `x`) is no worse than upcycling a parent of d1 tokens.

    Looked for between `low` and `high`; `low` where scratch is no worse there already, infinite where it never is.
    """
    d2 = np.geomspace(low, high, 4001)
    d1 = np.full_like(d2, d1)
    own = upcycled.predict({"d1": d1, "d2": d2})
    fresh = scratch.predict({"x": d2})
    ahead = np.flatnonzero(fresh > own)  # places where upcycling is
    if not len(ahead):
        return low
    after = ahead[-1] + 1
    if after == len(d2):
        return math.inf
    return float(d2[after])


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters of a size that a parent of 100 G tokens halves the gain, and runs."""
    parameters = {"A": 3000.0, "E": 1.6, "a1": 0.15, "a2": 0.3, "a3": 0.007}
    runs = {
        "d1": log_uniform(generator, 1e9, 3e11, 40),
        "d2": log_uniform(generator, 1e8, 1e11, 40),
    }
    return {"parameters": parameters, "runs": runs}
