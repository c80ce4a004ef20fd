"""The contract of scaling laws: what a law says of itself, and the curve and the fit that it becomes.

Legend: N runs, K terms, P parameters, Q shape parameters, B bootstrap draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.scaling import fitting
from mixwell.scaling.fitting import Problem, Solution, log_loss
from mixwell.scaling.runs import Runs, read


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a law is fitted; `ValueError` for a value out of range."""

    delta: float = 1e-3  # where Huber's loss of log L turns from squares to absolute values, above 0
    starts: int = 64  # how many starts L-BFGS is given, at least 1

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta is {self.delta}; expected a number above 0")
        if self.starts < 1:
            raise ValueError(f"starts is {self.starts}; expected at least 1")


Ranges = Mapping[str, tuple[float, float]]
Values = Mapping[str, float]


class Law(ABC):
    """A law L(x) = sum of powers of the columns x; a subclass is final and says what stands below."""

    columns: ClassVar[tuple[str, ...]]  # what it reads of a run
    ranges: ClassVar[Ranges]  # parameter -> where starts lie; of a prefactor, its logarithm
    prefactors: ClassVar[frozenset[str]]  # parameters that are fitted as logarithms
    shapes: ClassVar[Ranges] = {}  # those inside the linear forms, with bounds above 0
    published: ClassVar[Values] = {}  # the paper's values, where known

    def __init__(self, *, delta: float = 1e-3, starts: int = 64) -> None:
        self.config = Config(delta=delta, starts=starts)

    @abstractmethod
    def terms(self, runs: Runs, shape_Q: np.ndarray) -> np.ndarray:
        """X [N, K, P] with log L = logsumexp_k(X theta)."""

    def linear(self, *terms: Mapping[str, Any]) -> np.ndarray:
        """X [N, K, P] of terms that each give the factors, numbers or [N], of some parameters; the rest are 0."""
        names = list(self.ranges)
        every = [factor for term in terms for factor in term.values()]
        count = max(map(np.size, every))
        shape = count, len(terms), len(names)
        terms_NKP = np.zeros(shape)
        for k, term in enumerate(terms):
            for name, factor in term.items():
                place = names.index(name)
                terms_NKP[:, k, place] = factor
        return terms_NKP

    def flops_per_token(self, runs: Runs) -> np.ndarray:
        """Training FLOPs of one token: [N]."""
        return 6 * runs["n"]

    def total_parameters(self, runs: Runs) -> np.ndarray:
        """Parameters that memory must hold: [N]."""
        return runs["n"]

    def curve(self, parameters: Mapping[str, float]) -> Curve:
        """The law with these parameters; missing or unknown ones raise `MixwellError`."""
        known = [*self.ranges, *self.shapes]
        if set(parameters) != set(known):
            asked, came = ", ".join(known), ", ".join(parameters)
            raise MixwellError(f"the law takes the parameters {asked}; got {came}.")
        inner = [self._inner(name, parameters[name]) for name in self.ranges]
        shape = [float(parameters[name]) for name in self.shapes]
        return Curve(self, np.array(inner), np.array(shape))

    def _inner(self, name: str, value: float) -> float:
        if name in self.prefactors:
            return float(np.log(value))
        return float(value)

    def fit(self, table: Any, *, loss: str = "loss", weight: str | None = None,
            generator: np.random.Generator | None = None) -> Fit:
        """Fit to runs: a mapping or data frame with the law's columns and the column `loss`, in nats or bits.

        weight: the column that says how much each run counts. generator: of the starts; default seed 0. Too few runs,
        columns that do not vary apart, and values that are not finite and above 0 raise `MixwellError`.
        """
        beside = [weight] if weight else []
        runs = read(table, [*self.columns, loss, *beside])
        losses_N = runs.pop(loss)
        weights_N = runs.pop(weight) if weight else np.ones_like(losses_N)
        self._check(runs, losses_N)
        problem = self._problem(runs, losses_N, weights_N)
        starts = self._starts(generator or np.random.default_rng(0))
        solution = fitting.solve(problem, *starts)
        return Fit(self, solution.theta_P, solution.shape_Q, runs, losses_N, weights_N, solution.objective)

    def _problem(self, runs: Runs, losses_N: np.ndarray, weights_N: np.ndarray) -> Problem:
        fixed_NKP = None if self.shapes else self.terms(runs, np.empty(0))

        def terms(shape_Q: np.ndarray) -> np.ndarray:
            return self.terms(runs, shape_Q) if fixed_NKP is None else fixed_NKP

        bounds = tuple(self.shapes.values())
        return Problem(terms, bounds, losses_N, weights_N, self.config.delta, in_logs=True)

    def _starts(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Starts spread evenly over the ranges, [S, P] and [S, Q]; shape parameters on a log scale."""
        count = self.config.starts
        ranges = list(self.ranges.values())
        shapes = self.shapes.values()
        log_shapes = [tuple(np.log(ends)) for ends in shapes]
        theta_SP = _spread(generator, count, ranges)
        log_shape_SQ = _spread(generator, count, log_shapes)
        return theta_SP, np.exp(log_shape_SQ)

    def _check(self, runs: Runs, losses_N: np.ndarray) -> None:
        """Raise `MixwellError` where the runs cannot tell the parameters."""
        count = len(losses_N)
        free = len(self.ranges) + len(self.shapes)
        if count <= free:
            raise MixwellError(f"{count} runs came; {free} parameters need at least {free + 1}.")
        for name in self.columns:
            column_N = runs[name]
            if np.ptp(column_N) == 0:
                raise MixwellError(f"column {name!r} is {column_N[0]:g} in every run; what it does cannot be told. "
                                   "Add runs in which it differs, or take a law without it.")
        self._check_apart(runs)

    def _check_apart(self, runs: Runs) -> None:
        logs_CN = np.stack([np.log(runs[name]) for name in self.columns])
        centred_CN = logs_CN - logs_CN.mean(1, keepdims=True)
        if np.linalg.matrix_rank(centred_CN, rtol=1e-6) < len(self.columns):
            raise MixwellError(f"the columns {', '.join(self.columns)} vary together, one being a power of the others; "
                               "what each does cannot be told. Add runs in which they vary apart.")


def _spread(generator: np.random.Generator, count: int, ranges: list[tuple[float, float]]) -> np.ndarray:
    """Latin hypercube: in each column, one draw in each of `count` equal parts of the range."""
    found = np.empty((count, len(ranges)))
    for place, (low, high) in enumerate(ranges):
        part_S = generator.permutation(count)
        within_S = generator.random(count)
        share_S = (part_S + within_S) / count
        width = high - low
        found[:, place] = low + share_S * width
    return found


@dataclass(frozen=True)
class Curve:
    """A law with its parameters."""

    law: Law
    theta_P: np.ndarray
    shape_Q: np.ndarray

    @property
    def parameters(self) -> dict[str, float]:
        """By the paper's names; prefactors as they stand in the equation."""
        found = {}
        law = self.law
        for name, value in zip(law.ranges, self.theta_P):
            if name in law.prefactors:
                value = np.exp(value)
            found[name] = float(value)
        for name, value in zip(self.law.shapes, self.shape_Q):
            found[name] = float(value)
        return found

    def predict(self, table: Any) -> np.ndarray:
        """Loss of models that the table describes: [N]."""
        runs = read(table, self.law.columns)
        terms_NKP = self.law.terms(runs, self.shape_Q)
        return np.exp(log_loss(terms_NKP, self.theta_P))


@dataclass(frozen=True)
class Fit(Curve):
    """A law fitted to runs."""

    runs: Runs
    losses_N: np.ndarray
    weights_N: np.ndarray
    objective: float  # weighted mean of Huber's loss of log L

    @property
    def residuals_N(self) -> np.ndarray:
        """log L observed less log L fitted: 0.01 is 1 % of the loss."""
        fitted_N = self.predict(self.runs)
        return np.log(self.losses_N) - np.log(fitted_N)

    def refitted(self, places: np.ndarray) -> Fit:
        """The fit to some of the runs (or to some more than once), started from this one."""
        own = self._at(places)
        problem = self.law._problem(own.runs, own.losses_N, own.weights_N)
        start = Solution(self.theta_P, self.shape_Q, self.objective)
        found = fitting.descend(problem, start, fitting.LAST)
        return replace(own, theta_P=found.theta_P, shape_Q=found.shape_Q, objective=found.objective)

    def _rows(self, places: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, column_N in self.runs.items():
            found[name] = column_N[places]
        return found

    def bootstrap(self, draws: int = 200, generator: np.random.Generator | None = None) -> list[Fit]:
        """Fits to runs drawn with replacement: how far they differ is how sure the law is."""
        generator = generator or np.random.default_rng(0)
        N = len(self.losses_N)
        found = []
        for _ in range(draws):
            places_N = generator.integers(N, size=N)
            found.append(self.refitted(places_N))
        return found

    def interval(self, table: Any, draws: list[Fit], level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of the predicted loss over bootstrap draws: [N] each.

        A run's own scatter around the law is added: a draw's prediction times exp of one of its residuals.
        """
        predicted_BN = np.stack([fit.predict(table) for fit in draws])
        scatter_R = np.exp(self.residuals_N)
        spread_RBN = np.multiply.outer(scatter_R, predicted_BN)
        tail = (1 - level) / 2
        low_N, high_N = np.quantile(spread_RBN, [tail, 1 - tail], axis=(0, 1))
        return low_N, high_N

    def largest_left_out(self, share: float = 0.2) -> float:
        """Root mean square error of log L on the runs of most training FLOPs, by a fit to the others.

        share: of the runs that are left out, above 0 and below 1; too few others raise `MixwellError`.
        """
        fit, left_out = self.without_largest(share)
        predicted_N = fit.predict(left_out.runs)
        ratio_N = predicted_N / left_out.losses_N
        error_N = np.log(ratio_N)
        square = np.mean(error_N**2)
        return float(np.sqrt(square))

    def without_largest(self, share: float = 0.2) -> tuple[Fit, Fit]:
        """The fit to all but the runs of most training FLOPs, and the runs that are left out (with these parameters).

        share: of the runs that are left out, above 0 and below 1; too few others raise `MixwellError`.
        """
        if not 0 < share < 1:
            raise MixwellError(f"share is {share}; expected a number between 0 and 1.")
        order_N = np.argsort(self.cost_N, kind="stable")
        held = max(1, round(share * len(order_N)))
        kept = order_N[:-held]
        last = order_N[-held:]
        left_out = self._at(last)
        smaller = self._at(kept)
        self.law._check(smaller.runs, smaller.losses_N)
        return self.refitted(kept), left_out

    def _at(self, places: np.ndarray) -> Fit:
        """Some of the runs, with the parameters of all."""
        runs = self._rows(places)
        losses_N = self.losses_N[places]
        weights_N = self.weights_N[places]
        return replace(self, runs=runs, losses_N=losses_N, weights_N=weights_N)

    @property
    def cost_N(self) -> np.ndarray:
        """Training FLOPs of the runs, or what else orders them by cost."""
        tokens_N = self.runs.get("d", np.ones_like(self.losses_N))
        return self.law.flops_per_token(self.runs) * tokens_N
