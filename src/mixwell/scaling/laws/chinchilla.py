"""The loss of dense models over parameters and tokens.

**Equation:** L(N, D) = A / N^alpha + B / D^beta + E.
**Shapes:** columns `n` (parameters N) and `d` (training tokens D), numbers of any unit above 0.
**Reference:** Hoffmann et al. 2022 (2203.15556), equation 10, approach 3; refitted by Besiroglu et al. 2024
    (2404.10102).
**Differs:** starts are a Latin hypercube over the ranges of the published grid, not the whole grid; Huber's loss is
    averaged, not summed. `published` holds the refit of 2024, whose values the paper's own runs support.
**Fails when:** N and D vary together (one ratio of tokens to parameters): the terms cannot be told apart, and the fit
    refuses. A and B are hardly determined; compare exponents, E and optima.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.law import Law, Ranges, Values
from mixwell.scaling.runs import Runs, log_uniform


@method(title="Chinchilla's law", year=2022, tags={"law", "budget"})
class Chinchilla(Law):
    """Three terms: size, data, and what no model learns."""

    columns = ("n", "d")
    ranges: ClassVar[Ranges] = {
        "A": (0.0, 25.0),
        "B": (0.0, 25.0),
        "E": (-1.0, 1.0),
        "alpha": (0.0, 2.0),
        "beta": (0.0, 2.0),
    }
    prefactors = frozenset({"A", "B", "E"})
    published: ClassVar[Values] = {
        "A": 482.01,
        "B": 2085.43,
        "E": 1.8172,
        "alpha": 0.3478,
        "beta": 0.3658,
    }

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """log A - alpha log N, log B - beta log D, log E."""
        log_n = np.log(runs["n"])
        log_d = np.log(runs["d"])
        size = {"A": 1.0, "alpha": -log_n}
        data = {"B": 1.0, "beta": -log_d}
        return self.linear(size, data, {"E": 1.0})


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters, and a grid of runs on which they can be told."""
    return {"parameters": Chinchilla.published, "runs": grid(generator)}


def grid(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Forty models of 20 M to 10 G parameters on 5 to 200 tokens each."""
    n = log_uniform(generator, 2e7, 1e10, 40)
    ratio = log_uniform(generator, 5.0, 200.0, 40)
    return {"n": n, "d": n * ratio}
