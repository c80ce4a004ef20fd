"""A power law with what no amount of the quantity removes.

**Equation:** L(x) = A / x^k + E.
**Shapes:** column `x` (parameters, tokens or FLOPs, above 0).
**Reference:** Henighan et al. 2020 (2010.14701), equation 1.1.
**Differs:** Huber's loss of log L.
**Fails when:** the runs do not bend yet: E is then hardly told from 0, and so is every extrapolation.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.law import Curve, Law, Ranges
from mixwell.scaling.runs import Runs, log_uniform


@method(title="Power law with a floor", year=2020, tags={"law"})
class SaturatingPower(Law):
    """One term and a constant."""

    columns = ("x",)
    ranges: ClassVar[Ranges] = {
        "A": (-5.0, 25.0),
        "E": (-5.0, 2.0),
        "k": (0.0, 2.0),
    }
    prefactors = frozenset({"A", "E"})

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """log A - k log x, and log E."""
        log_x = np.log(runs["x"])
        return self.linear({"A": 1.0, "k": -log_x}, {"E": 1.0})

    def flops_per_token(self, runs: Runs) -> np.ndarray:
        """What orders the runs by cost: x."""
        return runs["x"]


def reach(curve: Curve, loss: float) -> float:
    """The x at which a law with A, k and perhaps E comes to this loss; infinite where it never does."""
    found = curve.parameters
    above = loss - found.get("E", 0.0)
    if above <= 0:
        return math.inf
    ratio = found["A"] / above
    return ratio ** (1 / found["k"])


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters, and runs over four decades."""
    runs = {"x": log_uniform(generator, 1e6, 1e10, 20)}
    return {"parameters": {"A": 40.0, "k": 0.2, "E": 1.5}, "runs": runs}
