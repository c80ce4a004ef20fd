"""The loss of mixtures over their sparsity, the share of experts that a token leaves out.

**Equation:** L(N, D, S) = a / N^alpha + b / D^beta + c / (1 - S)^lambda + d / ((1 - S)^delta N^gamma) + e.
**Shapes:** columns `n` (total parameters N), `d` (tokens D), `active` (1 - S = K / E, above 0 and at most 1).
**Reference:** Abnar et al. 2025 (2501.12370), equation 6.
**Differs:** the column is 1 - S, so that a dense model is 1 and no logarithm of 0 is met. A token's FLOPs are
    6 (1 - S) N: embeddings and attention count as if they were experts.
**Fails when:** parameters are read for themselves: many sets of them give one surface; score the optimum. lambda is
    negative in the published fit: that term falls with S.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.law import Law, Ranges, Values
from mixwell.scaling.runs import Runs, log_uniform


@method(title="Sparsity law", year=2025, tags={"law", "budget"},
        paper="Parameters vs FLOPs: Scaling Laws for Optimal Sparsity for Mixture-of-Experts Language Models")
class Sparsity(Law):
    """Size, data, sparsity alone, and sparsity with size."""

    columns = ("n", "d", "active")
    ranges: ClassVar[Ranges] = {
        "a": (0.0, 12.0),
        "b": (0.0, 12.0),
        "c": (-2.0, 1.0),
        "d": (0.0, 6.0),
        "e": (-2.0, 1.0),
        "alpha": (0.0, 1.0),
        "beta": (0.0, 1.0),
        "lambda": (-0.5, 0.5),
        "delta": (0.0, 0.5),
        "gamma": (0.0, 0.5),
    }
    prefactors = frozenset({"a", "b", "c", "d", "e"})
    published: ClassVar[Values] = {
        "a": 16612.50,
        "b": 5455.67,
        "c": 0.4598,
        "d": 17.26,
        "e": 0.94,
        "alpha": 0.5962,
        "beta": 0.3954,
        "lambda": -0.1666,
        "delta": 0.1603,
        "gamma": 0.1595,
    }

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """The five terms in the equation's order."""
        log_n, log_d, log_active = (np.log(runs[name]) for name in self.columns)
        size = {"a": 1.0, "alpha": -log_n}
        data = {"b": 1.0, "beta": -log_d}
        alone = {"c": 1.0, "lambda": -log_active}
        with_size = {"d": 1.0, "delta": -log_active, "gamma": -log_n}
        return self.linear(size, data, alone, with_size, {"e": 1.0})
    def flops_per_token(self, runs: Runs) -> np.ndarray:
        """Six for each active parameter."""
        return 6 * runs["active"] * runs["n"]


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters, and runs from dense to one expert of fifty."""
    runs = {
        "n": log_uniform(generator, 1e8, 2e10, 80),
        "d": log_uniform(generator, 1e9, 1e11, 80),
        "active": generator.choice([1.0, 0.5, 0.25, 0.1, 0.05, 0.02], 80),
    }
    return {"parameters": Sparsity.published, "runs": runs}
