"""The loss of mixtures over how finely their experts are cut.

**Equation:** L(N, D, G) = c + (g / G^gamma + a) / N^alpha + b / D^beta;
    training FLOPs of a token F = (12 d^2 c_f + d E G c_r) L with c_f = 6 and c_r = 14.
**Shapes:** columns `n` (parameters outside embeddings, all experts counted), `d` (tokens), `g` (granularity G: hidden
    units of a dense layer over those of an expert).
**Reference:** Krajewski et al. 2024 (2402.07871).
**Differs:** Huber's delta is 1e-3 (0.1 in the paper, which hardly ever leaves the squares). Sizes are those of the
    paper's models: 64 times a dense layer in experts, width d 64 times the blocks L.
**Fails when:** N is taken as active parameters: the constants belong to all of them.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.law import Law, Ranges, Values
from mixwell.scaling.laws._experts import ASPECT, blocks_of
from mixwell.scaling.runs import Runs, log_uniform

EXPANSION = 64  # E: hidden units of all experts over those of a dense layer
A_BLOCK = 4 + 8 * EXPANSION  # parameters of a block, in d^2
PRODUCTS, ROUTING = 6, 14  # c_f and c_r


@method(title="Granularity law", year=2024, tags={"law", "budget"},
        paper="Scaling Laws for Fine-Grained Mixture of Experts")
class Granularity(Law):
    """Finer experts lessen the size term; routing to more of them costs."""

    columns = ("n", "d", "g")
    ranges: ClassVar[Ranges] = {
        "a": (0.0, 8.0),
        "b": (0.0, 8.0),
        "c": (-2.0, 1.0),
        "g": (-2.0, 4.0),
        "alpha": (0.0, 0.6),
        "beta": (0.0, 0.6),
        "gamma": (0.0, 2.0),
    }
    prefactors = frozenset({"a", "b", "c", "g"})
    published: ClassVar[Values] = {
        "a": 18.1,
        "b": 30.8,
        "c": 0.47,
        "g": 2.1,
        "alpha": 0.115,
        "beta": 0.147,
        "gamma": 0.58,
    }

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """a and g over N^alpha, b over D^beta, c."""
        log_n, log_d, log_g = (np.log(runs[name]) for name in self.columns)
        size = {"a": 1.0, "alpha": -log_n}
        coarseness = {"g": 1.0, "gamma": -log_g, "alpha": -log_n}
        data = {"b": 1.0, "beta": -log_d}
        return self.linear(size, coarseness, data, {"c": 1.0})
    def flops_per_token(self, runs: Runs) -> np.ndarray:
        """Products of the active experts and of the attention, and what routing costs."""
        blocks_N = blocks_of(runs["n"], A_BLOCK)
        width_N = ASPECT * blocks_N
        products_N = 12 * width_N**2 * PRODUCTS
        experts_N = EXPANSION * runs["g"]
        routing_N = width_N * experts_N * ROUTING
        return (products_N + routing_N) * blocks_N


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters, and runs of four granularities."""
    runs = {
        "n": log_uniform(generator, 1e8, 4e9, 60),
        "d": log_uniform(generator, 1e10, 1.3e11, 60),
        "g": generator.choice([1.0, 2.0, 4.0, 8.0, 16.0], 60),
    }
    return {"parameters": Granularity.published, "runs": runs}
