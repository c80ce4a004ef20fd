"""Examples or preferences: how error falls with supervised examples and preference pairs, and how to split a budget.

**Equation:** L(s, p) = E + A (1 + s / u)^(-a) (1 + w(s) p / v)^(-b), w(s) = (w0 + s / u) / (1 + s / u): what a pair is
    worth grows from w0 at a base model (a cold start where w0 is small) to 1. Under a budget B and costs c_s, c_p:
    s = floor(f B / c_s), p = floor((1 - f) B / c_p), f of least L.
**Shapes:** columns `s` and `p`: one more than the examples and the pairs of a run (1 where there are none); `of_counts`
    makes them.
**Reference:** Raghavendra et al. 2025 (2502.11284), which compares runs at several f and B; the law is ours.
**Differs:** the paper fits no law. One u serves both the examples' own gain and what they do for pairs.
**Fails when:** runs have no budget that is all pairs or all examples, or one size alone: w0, u and v are told by these.
**Cost:** O(starts * steps * N).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.scaling.law import Curve, Law, Ranges
from mixwell.scaling.runs import Runs, log_uniform


@method(title="Budget of examples and preferences", year=2025, tags={"law"},
        paper="Balancing the Budget: Understanding Trade-offs Between Supervised and Preference-Based Finetuning")
class FinetuningBudget(Law):
    """A product of two powers, of which the second waits for the first, and a constant."""

    columns = ("s", "p")
    ranges: ClassVar[Ranges] = {
        "A": (-3.0, 2.0),
        "E": (-5.0, 0.0),
        "a": (0.1, 1.0),
        "b": (0.1, 1.0),
    }
    prefactors = frozenset({"A", "E"})
    shapes: ClassVar[Ranges] = {
        "u": (1.0, 3e4),
        "v": (1.0, 3e4),
        "w0": (1e-4, 1.0),
    }

    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """log A - a log(1 + s / u) - b log(1 + w p / v), and log E."""
        u, v, w0 = shape_Q
        examples = runs["s"] - 1
        pairs = runs["p"] - 1
        scaled = examples / u
        worth = (w0 + scaled) / (1 + scaled)
        told = worth * pairs / v
        log_examples = np.log1p(scaled)
        log_pairs = np.log1p(told)
        falling = {"A": 1.0, "a": -log_examples, "b": -log_pairs}
        return self.linear(falling, {"E": 1.0})

    def flops_per_token(self, runs: Runs) -> np.ndarray:
        """What orders the runs by cost: examples and pairs together."""
        return runs["s"] + runs["p"]


def of_counts(table: Mapping[str, Any], examples: str = "examples", pairs: str = "pairs") -> dict[str, np.ndarray]:
    """The table with the law's columns beside its own; counts that are missing or negative raise `MixwellError`."""
    found = {name: np.asarray(column) for name, column in table.items()}
    found["s"] = 1 + _counts(table, examples)
    found["p"] = 1 + _counts(table, pairs)
    return found


def _counts(table: Mapping[str, Any], name: str) -> np.ndarray:
    if name not in table:
        known = ", ".join(table)
        raise MixwellError(f"the table has no column {name!r}; it has {known}.")
    count_N = np.asarray(table[name], dtype=np.float64)
    if not (count_N >= 0).all():
        raise MixwellError(f"column {name!r} holds a count below 0 or none.")
    return count_N


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent, in one currency; `ValueError` for a number that is not above 0."""

    total: float  # B
    example: float = 1.0  # c_s: of one supervised example
    pair: float = 1.0  # c_p: of one preference pair

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected a number above 0")


class Split(NamedTuple):
    """How a budget is spent best, and the loss that it should come to."""

    share: float  # f: of the budget that goes to examples
    examples: int
    pairs: int
    loss: float


def best_split(curve: Curve, budget: Budget, shares: int = 201) -> Split:
    """The split of least loss among so many shares from 0 to 1; the largest share among equals."""
    share_F = np.linspace(1, 0, shares)
    spent_F = share_F * budget.total
    left_F = budget.total - spent_F
    examples_F = _bought(spent_F, budget.example)
    pairs_F = _bought(left_F, budget.pair)
    runs = of_counts({"examples": examples_F, "pairs": pairs_F})
    loss_F = curve.predict(runs)
    best = loss_F.argmin()
    share, loss = share_F[best].item(), loss_F[best].item()
    examples, pairs = int(examples_F[best]), int(pairs_F[best])
    return Split(share, examples, pairs, loss)


def _bought(money_F: np.ndarray, price: float) -> np.ndarray:
    """How many that buys; rounding of the share loses none."""
    exact_F = money_F / price
    return np.floor(exact_F + 1e-9)


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Parameters of a cold start, and runs of up to 20,000 of each kind."""
    parameters = {"A": 0.9, "E": 0.05, "a": 0.35, "b": 0.5, "u": 60.0, "v": 200.0, "w0": 0.02}
    runs = {
        "s": log_uniform(generator, 1, 2e4, 60),
        "p": log_uniform(generator, 1, 2e4, 60),
    }
    return {"parameters": parameters, "runs": runs}
