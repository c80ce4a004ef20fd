"""One law for dense models and mixtures: the exponents of size and data change with the number of experts.

**Equation:** L(N, D, E) = a Eh^delta N^(alpha + gamma ln Eh) + b Eh^omega D^(beta + zeta ln Eh) + c,
    1 / Eh = 1 / (E - 1 + 1 / (1/E_start - 1/E_max)) + 1 / E_max.
**Shapes:** columns `n` (active parameters, embeddings counted), `d` (tokens), `e` (experts E, 1 for dense).
**Reference:** Ludziejewski et al. 2025 (2502.05172).
**Differs:** every run counts alike unless a column of weights is given (the paper weighs by loss); E_start and E_max
    are fitted on a log scale by difference quotients. Sizes in memory are those of the paper's models: SwiGLU of three
    times the width, top-1, width 64 times the blocks, 50,257 words embedded twice.
**Fails when:** two numbers of experts only: Eh is then one free number, and E_start and E_max stay where they began.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.law import Law, Ranges, Values
from mixwell.scaling.laws._experts import ASPECT, blocks_of, effective_experts
from mixwell.scaling.runs import Runs, log_uniform

VOCABULARY = 50_257


@method(title="Joint law of dense models and mixtures", year=2025, tags={"law", "budget"},
        paper="Joint MoE Scaling Laws: Mixture of Experts Can Be Memory Efficient")
class JointMoE(Law):
    """Size and data terms whose exponents move with the logarithm of the effective experts."""

    columns = ("n", "d", "e")
    ranges: ClassVar[Ranges] = {
        "a": (0.0, 8.0),
        "b": (0.0, 8.0),
        "c": (-1.0, 1.0),
        "alpha": (-0.6, 0.0),
        "beta": (-0.6, 0.0),
        "gamma": (-0.05, 0.05),
        "delta": (-1.0, 1.0),
        "zeta": (-0.05, 0.05),
        "omega": (-1.0, 1.0),
    }
    prefactors = frozenset({"a", "b", "c"})
    shapes: ClassVar[Ranges] = {
        "E_start": (1.0, 4.0),
        "E_max": (100.0, 1000.0),
    }
    published: ClassVar[Values] = {
        "a": 35.91,
        "b": 35.98,
        "c": 1.3637,
        "alpha": -0.1889,
        "beta": -0.1775,
        "gamma": 0.0098,
        "delta": -0.2285,
        "zeta": -0.0259,
        "omega": 0.5529,
        "E_start": 2.0732,
        "E_max": 290.4521,
    }

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """The three terms; exponents of N and D hang on ln Eh."""
        log_n = np.log(runs["n"])
        log_d = np.log(runs["d"])
        experts_N = effective_experts(runs["e"], *shape_Q)
        log_e = np.log(experts_N)
        size = {"a": 1.0, "alpha": log_n, "gamma": log_e * log_n, "delta": log_e}
        data = {"b": 1.0, "beta": log_d, "zeta": log_e * log_d, "omega": log_e}
        return self.linear(size, data, {"c": 1.0})
    def total_parameters(self, runs: Runs) -> np.ndarray:
        """Parameters of all experts, for models of the paper's form."""
        rows = 2 * VOCABULARY
        blocks_N = blocks_of(runs["n"], 13, rows)
        width_N = ASPECT * blocks_N
        squares_N = width_N**2 * blocks_N
        a_block_N = 4 + 9 * runs["e"]
        return rows * width_N + a_block_N * squares_N


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters, and runs of dense models and mixtures."""
    runs = {
        "n": log_uniform(generator, 5e7, 3e9, 60),
        "d": log_uniform(generator, 1e9, 6e10, 60),
        "e": generator.choice([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], 60),
    }
    return {"parameters": JointMoE.published, "runs": runs}
