"""A straight line in logarithms: the loss over one quantity.

**Equation:** L(x) = A / x^k = (x0 / x)^k.
**Shapes:** column `x` (parameters, tokens or FLOPs, above 0).
**Reference:** Yao et al. 2024 (2410.12360), who fit one line each for series in and out of distribution, for encoders
    and decoders; Kaplan et al. 2020 (2001.08361).
**Differs:** Huber's loss in place of least squares. The paper's loss is a log density, which may be negative and whose
    exponent then hangs on the data's units: losses here must be above 0, so give them relative to a naive forecaster.
**Fails when:** the runs bend: see `scaling.laws.saturating_power`. The loss of the best checkpoint on the test set is a
    leak.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.law import Law, Ranges
from mixwell.scaling.runs import Runs, log_uniform


@method(title="Power law", year=2020, tags={"law"},
        paper="Towards Neural Scaling Laws for Time Series Foundation Models")
class PowerLaw(Law):
    """One term."""

    columns = ("x",)
    ranges: ClassVar[Ranges] = {
        "A": (-5.0, 25.0),
        "k": (0.0, 2.0),
    }
    prefactors = frozenset({"A"})

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """log A - k log x."""
        log_x = np.log(runs["x"])
        return self.linear({"A": 1.0, "k": -log_x})

    def flops_per_token(self, runs: Runs) -> np.ndarray:
        """What orders the runs by cost: x."""
        return runs["x"]


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters, and runs over four decades."""
    runs = {"x": log_uniform(generator, 1e6, 1e10, 20)}
    return {"parameters": {"A": 40.0, "k": 0.2}, "runs": runs}
