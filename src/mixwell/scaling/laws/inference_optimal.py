"""The loss of mixtures with a saturating number of experts, and what it costs to serve them.

**Equation:** log L(N, D, E) = log(A / N^alpha + B / Eh^beta + C / D^gamma + F) + d ln N ln E, Eh as in Clark et al.
    with E_max the most it comes to. Serving: a group of g devices holds the weights and a batch of sequences' caches;
    a decoding step reads both once and computes 2 N FLOPs a sequence; a token costs g over the group's tokens a second.
**Shapes:** columns `n` (active parameters N), `d` (tokens), `e` (experts E, 1 for dense).
**Reference:** Yun et al. 2024 (2404.02852).
**Differs:** the paper's coefficients are not given here, since none could be checked. E_start is 1: one expert counts
    as one. The serving model is a roofline of our own: all experts are read at each step, and what a device's
    memory has left beside weights bounds the batch.
**Fails when:** loss alone is asked for: FLOPs of a token do not hang on E, so the most experts always win; ask
    `serving`.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.scaling.law import Law, Ranges
from mixwell.scaling.laws._experts import effective_experts
from mixwell.scaling.runs import Runs, log_uniform


@method(title="Inference-optimal law", year=2024, tags={"law", "budget"},
        paper="Toward Inference-optimal Mixture-of-Expert Large Language Models")
class InferenceOptimal(Law):
    """Size, experts, data and a constant, with an interaction of size and experts."""

    columns = ("n", "d", "e")
    ranges: ClassVar[Ranges] = {
        "A": (0.0, 10.0),
        "B": (-4.0, 4.0),
        "C": (0.0, 10.0),
        "F": (-2.0, 1.0),
        "alpha": (0.0, 0.6),
        "beta": (0.0, 2.0),
        "gamma": (0.0, 0.6),
        "d": (-0.01, 0.01),
    }
    prefactors = frozenset({"A", "B", "C", "F"})
    shapes: ClassVar[Ranges] = {
        "E_max": (50.0, 1000.0),
    }
    expert_share = 2 / 3  # of a dense model's parameters that lie in the layers that become experts

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """The four terms, each with the interaction."""
        log_n, log_d, log_experts = (np.log(runs[name]) for name in self.columns)
        experts_N = effective_experts(runs["e"], 1.0, shape_Q[0])
        log_e = np.log(experts_N)
        both = {"d": log_n * log_experts}
        size = {"A": 1.0, "alpha": -log_n}
        experts = {"B": 1.0, "beta": -log_e}
        data = {"C": 1.0, "gamma": -log_d}
        return self.linear(size | both, experts | both, data | both, {"F": 1.0} | both)
    def total_parameters(self, runs: Runs) -> np.ndarray:
        """Parameters of all experts, where two thirds of a dense model become experts."""
        copies = self.expert_share * (runs["e"] - 1)
        return runs["n"] * (1 + copies)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a model is served on; `ValueError` for a value that is not above 0."""

    memory_bytes: float = 80e9
    bytes_per_second: float = 2e12
    flops: float = 300e12
    bytes_per_parameter: float = 2.0
    cache_bytes: float = 1e9  # of one sequence's keys and values
    most_batch: int = 512  # sequences decoded together at most

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected a number above 0")


def serving(total: float, active: float, device: Device) -> tuple[float, int, int]:
    """(device-seconds of a token, devices, batch) of the cheapest group that holds a model.

    total, active: parameters held, and used for a token. `MixwellError` where no group has room for one sequence.
    """
    weights = total * device.bytes_per_parameter
    least = max(1, math.ceil(weights / device.memory_bytes))
    counts = range(least, 2 * least + 8)
    groups = [_of_group(count, weights, active, device) for count in counts]
    possible = [one for one in groups if one[2]]
    if not possible:
        raise MixwellError(f"a sequence's cache of {device.cache_bytes:g} bytes fits into no group of devices of "
                           f"{device.memory_bytes:g} bytes; lower cache_bytes or take larger devices.")
    return min(possible)


def _of_group(count: int, weights: float, active: float, device: Device) -> tuple[float, int, int]:
    left = count * device.memory_bytes - weights
    fitting = int(left // device.cache_bytes)
    most = device.most_batch * count
    batch = max(0, min(fitting, most))
    read = weights + batch * device.cache_bytes
    reading_s = read / (count * device.bytes_per_second)
    computing_s = 2 * active * batch / (count * device.flops)
    step_s = max(reading_s, computing_s)
    if not batch:
        return math.inf, count, 0
    cost = count * step_s / batch
    return cost, count, batch


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters at which experts pay and saturate, and runs."""
    prefactors = {"A": 80.0, "B": 0.4, "C": 200.0, "F": 1.2}
    exponents = {"alpha": 0.25, "beta": 0.6, "gamma": 0.28, "d": 0.0005}
    runs = {
        "n": log_uniform(generator, 1e8, 5e9, 70),
        "d": log_uniform(generator, 2e9, 1e11, 70),
        "e": generator.choice([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], 70),
    }
    return {"parameters": {**prefactors, **exponents, "E_max": 200.0}, "runs": runs}
