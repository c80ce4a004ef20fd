"""The largest of many running sums, released after every row of a stream, so that no single row is betrayed.

**Equation:** rows x_t in [0, 1]^D; after each, S_tj = sum_s<=t x_sj: MaxSum releases max_j S_tj, SumSelect argmax_j
S_tj. Streams that differ in one row give releases that are (epsilon, delta)-indistinguishable. "tree": every column has
a noisy sum for each dyadic stretch of rows, and S_t is read from at most L = floor(log2 T) + 1 of them; a row enters L
D sums, so noise is Laplace of scale D L / epsilon, or normal of variance D L / (2 rho). "recompute": the answer is
renewed every B rows and stands in between; each of n = floor(T / B) renewals spends 1 / n of the privacy on a sum that
a row moves by 1 (scale n / epsilon, or variance n / (2 rho)), or on an exponential mechanism over columns. rho is the
zero-concentrated privacy within (epsilon, delta): epsilon = rho + 2 sqrt(rho log(1 / delta)).

**Shapes:** x (T, D); answers (T,): values of MaxSum, or columns of SumSelect.

**Reference:** Jain, Raskhodnikova, Sivakumar, Smith (2023), The Price of Differential Privacy under Continual
Observation, arXiv:2112.00828; trees: Chan, Shi, Song (2011); rho: Bun, Steinke (2016).

**Differs:** the paper's lower bounds are theorems and have nothing to run. `every=None` takes the B, and "auto" the
mechanism, whose bound on the error is smaller; bounds depend on T, D and the budget alone, never on rows. An answer
before the first renewal is 0, or column 0.

**Fails when:** T is not known beforehand; a single row is not what is to be hidden, but all rows of a person. Noise is
drawn as floating-point numbers, whose low bits an attacker who sees them may use: round answers before publishing them.

**Cost:** O(T D) time; O(D log T) memory beside the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method

Draw = Callable[[int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is released under which privacy; `ValueError` for a value out of range."""

    query: Literal["max", "argmax"] = "max"  # MaxSum or SumSelect
    mechanism: Literal["auto", "tree", "recompute"] = "auto"
    epsilon: float = 1.0  # infinite: without noise
    delta: float = 1e-6  # 0: pure privacy, by noise with heavier tails
    every: int | None = None  # B, rows between renewals of "recompute"
    failure: float = 0.05  # chance with which errors may exceed the bound that chooses

    def __post_init__(self) -> None:
        if self.query not in ("max", "argmax"):
            raise ValueError(f"query is {self.query!r}; expected 'max' or 'argmax'")
        if self.mechanism not in ("auto", "tree", "recompute"):
            raise ValueError(f"mechanism is {self.mechanism!r}; expected 'auto', 'tree' or 'recompute'")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon is {self.epsilon}; expected above 0")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta is {self.delta}; expected from 0 to below 1")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every is {self.every}; expected 1 or more")
        if not 0 < self.failure < 1:
            raise ValueError(f"failure is {self.failure}; expected between 0 and 1")

    def rho(self) -> float:
        """Zero-concentrated privacy that implies (epsilon, delta); an error where delta is 0."""
        odds = -math.log(self.delta)
        above, below = math.sqrt(odds + self.epsilon), math.sqrt(odds)
        return (self.epsilon / (above + below)) ** 2  # (above - below)^2 without cancellation


class Release(NamedTuple):
    """What may be published, and how it was made."""

    answers_T: Tensor  # sums (MaxSum) or columns (SumSelect)
    every: int  # rows between renewals; 1 of a tree
    bound: float  # the largest error of any answer, but for a chance of `failure`


class Counter:
    """Running sums of rows, each the sum of noisy sums of dyadic stretches: a number's binary digits, with carries."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw  # noise (D,) of a stretch
        self.rows = 0
        self.exact: list[Tensor] = []  # sums of stretches of 1, 2, 4, ... rows, as far as they are in use
        self.noisy: list[Tensor | None] = []

    def add(self, row_D: Tensor) -> Tensor:
        """Noisy sums (D,) of all rows up to this one."""
        self.rows += 1
        level, stretch_D = 0, row_D
        while level < len(self.noisy) and self.noisy[level] is not None:
            stretch_D = stretch_D + self.exact[level]
            self.noisy[level] = None
            level += 1
        if level == len(self.noisy):
            self.noisy.append(None)
            self.exact.append(stretch_D)
        self.exact[level] = stretch_D
        self.noisy[level] = stretch_D + self.draw(len(row_D))
        there = [part for part in self.noisy if part is not None]
        return torch.stack(there).sum(0)


def levels(rows: int) -> int:
    """L: stretches that a row is part of, and that a sum is read from, at most."""
    return rows.bit_length()


def noise_scale(config: Config, releases: int, columns: int = 1) -> float:
    """Laplace's scale, or the normal's deviation, of sums of which a row changes `columns` in each of `releases`."""
    if math.isinf(config.epsilon):
        return 0.0
    if config.delta == 0:
        return releases * columns / config.epsilon
    square = releases * columns / (2 * config.rho())
    return math.sqrt(square)


def choice_epsilon(config: Config, releases: int) -> float:
    """epsilon of each of so many exponential mechanisms, which are epsilon^2 / 8 zero-concentrated."""
    if math.isinf(config.epsilon):
        return math.inf
    if config.delta == 0:
        return config.epsilon / releases
    return math.sqrt(8 * config.rho() / releases)


def tail(config: Config, scale: float, summed: int, answers: float) -> float:
    """What none of so many sums of `summed` draws of noise exceeds, but for a chance of `failure`."""
    log_odds = math.log(2 * answers / config.failure)
    if config.delta > 0:
        return scale * math.sqrt(2 * summed * log_odds)
    if summed == 1:
        return scale * log_odds
    widest = max(summed, log_odds)  # Chan, Shi, Song, corollary 2.9
    return scale * math.sqrt(8 * widest * log_odds)


def tree_bound(config: Config, rows: int, columns: int) -> float:
    """The largest error of a tree's answers, but for a chance of `failure`."""
    deep = levels(rows)
    scale = noise_scale(config, deep, columns)
    wrong = tail(config, scale, deep, rows * columns)
    return wrong if config.query == "max" else 2 * wrong


def recompute_bound(config: Config, rows: int, columns: int, every: int) -> float:
    """The largest error of answers that are renewed every so many rows, but for a chance of `failure`."""
    renewals = rows // every
    if renewals == 0:
        return float(rows)
    stale = float(every - 1)
    if math.isinf(config.epsilon):
        return stale
    if config.query == "max":
        scale = noise_scale(config, renewals)
        return stale + tail(config, scale, 1, renewals)
    log_odds = math.log(columns * renewals / config.failure)
    return stale + 2 * log_odds / choice_epsilon(config, renewals)


def plan(config: Config, rows: int, columns: int) -> tuple[str, int, float]:
    """The mechanism, the rows between renewals and the bound on the error; of what is open, the smallest."""
    by_tree = tree_bound(config, rows, columns)
    options = range(1, rows + 2) if config.every is None else [config.every]
    bounds = [(recompute_bound(config, rows, columns, every), every) for every in options]
    by_renewal, every = min(bounds)
    chosen = config.mechanism
    if chosen == "auto":
        chosen = "tree" if by_tree <= by_renewal else "recompute"
    if chosen == "tree":
        return chosen, 1, by_tree
    return chosen, every, by_renewal


@method(title="Largest running sum under continual observation", year=2023, tags={"value"},
        paper="The Price of Differential Privacy under Continual Observation")
def continual_max(x_TD: Tensor, config: Config | None = None, generator: torch.Generator | None = None) -> Release:
    """Private answers after every row of a stream x (T, D), whose entries lie between 0 and 1.

    Without a generator the noise comes from the system's own entropy; a seed that others know hides nothing.
    `ValueError` for entries outside.
    """
    config = config or Config()
    x_TD = torch.as_tensor(x_TD).double()
    if x_TD.ndim != 2 or x_TD.numel() == 0:
        raise ValueError(f"x has shape {tuple(x_TD.shape)}; expected (rows, columns), one of each or more")
    inside = (x_TD >= 0) & (x_TD <= 1)
    if not inside.all():
        raise ValueError("x holds values outside 0 to 1; scale each column by what it may be at most")
    draws = generator or _unforeseen()
    rows, columns = x_TD.shape
    mechanism, every, bound = plan(config, rows, columns)
    if mechanism == "tree":
        answers = _by_tree(x_TD, config, draws)
    else:
        answers = _by_renewal(x_TD, every, config, draws)
    return Release(torch.stack(list(answers)), every, bound)


def _unforeseen() -> torch.Generator:
    """A generator that nobody knows the seed of."""
    draws = torch.Generator()
    draws.seed()
    return draws


def _by_tree(x_TD: Tensor, config: Config, draws: torch.Generator) -> Iterable[Tensor]:
    """An answer a row, from noisy sums of all columns."""
    rows, columns = x_TD.shape
    deep = levels(rows)
    scale = noise_scale(config, deep, columns)
    counter = Counter(lambda count: scale * _noise(count, config, draws))
    for row_D in x_TD:
        sums_D = counter.add(row_D)
        yield _answer(sums_D, config)


def _by_renewal(x_TD: Tensor, every: int, config: Config, draws: torch.Generator) -> Iterable[Tensor]:
    """An answer a row, renewed every so many."""
    rows, columns = x_TD.shape
    renewals = rows // every
    sums_D = torch.zeros(columns, dtype=torch.float64)
    answer = _answer(sums_D, config)
    for t, row_D in enumerate(x_TD, 1):
        sums_D = sums_D + row_D
        if t % every == 0:
            answer = _renewed(sums_D, renewals, config, draws)
        yield answer


def _answer(sums_D: Tensor, config: Config) -> Tensor:
    """The largest sum, or its column."""
    return sums_D.max() if config.query == "max" else sums_D.argmax()


def _renewed(sums_D: Tensor, renewals: int, config: Config, draws: torch.Generator) -> Tensor:
    """One private maximum, or its column by the exponential mechanism, which is the largest sum with Gumbel noise."""
    if config.query == "max":
        (noise,) = _noise(1, config, draws)
        return sums_D.max() + noise_scale(config, renewals) * noise
    exponential_D = _exponential(len(sums_D), draws)
    gumbel_D = -exponential_D.log()
    width = 2 / choice_epsilon(config, renewals)
    noisy_D = sums_D + width * gumbel_D
    return noisy_D.argmax()


def _noise(count: int, config: Config, draws: torch.Generator) -> Tensor:
    """Standard normal draws, or Laplace's of scale one where privacy is pure."""
    if config.delta > 0:
        return torch.randn(count, generator=draws, dtype=torch.float64)
    return _exponential(count, draws) - _exponential(count, draws)


def _exponential(count: int, draws: torch.Generator) -> Tensor:
    """Standard exponential draws, none of them zero."""
    uniform = torch.rand(count, generator=draws, dtype=torch.float64)
    return -torch.log1p(-uniform).clamp(max=-1e-300)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty rows of three columns, the first the fullest."""
    chance_T3 = torch.rand(40, 3, generator=generator)
    bits_T3 = (chance_T3 < torch.tensor([0.9, 0.5, 0.2])).double()
    return {"x_TD": bits_T3, "config": Config(), "generator": generator}
