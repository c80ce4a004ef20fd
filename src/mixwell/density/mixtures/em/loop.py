"""Expectation-maximisation, once for every family: a local part over pieces, a sum, a global part.

Parameters are dictionaries of float64 tensors with a leading axis over starts, so that several starts run as one
batch. B rows of a piece, N rows in all, S starts, K components.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mixwell.density.mixtures.em.kernels import posterior
from mixwell.density.mixtures.em.processes import Alone
from mixwell.density.mixtures.em.rows import Piece, Rows
from mixwell.density.mixtures.em.workers import Workers

Params = dict[str, Tensor]
Assign = Callable[[Piece], Tensor]  # responsibilities (S, K, B) that are given, not computed


class Family(ABC):
    """What EM must know of a family of components."""

    def levels(self, params: Params | None) -> tuple[Any, ...]:
        """Ways to compute a step, the cheapest that is accurate enough for `params` first."""
        return (None,)

    def trusts(self, params: Params, level: Any) -> bool:
        """Whether parameters that came out of a step at `level` were computed accurately enough."""
        return True

    def refuse(self, params: Params) -> None:
        """`ValueError` that says what is wrong, where even the most careful way gave parameters that are no use."""
        raise AssertionError("a family that distrusts its parameters says what is wrong with them")

    def online_level(self) -> Any:
        """The way whose statistics can be averaged over batches."""
        return None

    def log_prior(self, params: Params) -> Tensor | float:
        """Log prior density (S,) of parameters, up to a constant, in nats."""
        return 0.0

    @abstractmethod
    def kernel(self, params: Params | None, level: Any) -> Any:
        """An object with `rows(S * K)`, `joint(piece) -> (state, log_joint_SKB)` and `tally(state, resp_SKB)`."""

    @abstractmethod
    def maximise(self, tally: Tally, params: Params | None, level: Any) -> Params:
        """The M step, from sums over all rows."""


@dataclass
class Tally:
    """Sums over rows: everything that the M step sees, and all that processes have to exchange."""

    statistics: Any  # a NamedTuple of tensors
    log_likelihood_S: Tensor
    weight: Tensor  # scalar: total weight of the rows

    def over(self, processes: Alone) -> Tally:
        """The sums over the rows of all processes."""
        own = [*self.statistics, self.log_likelihood_S, self.weight]
        *totals, log_likelihood_S, weight = processes.total(own)
        kind = type(self.statistics)
        statistics = kind(*totals)
        return Tally(statistics, log_likelihood_S, weight)

    def __add__(self, other: Tally) -> Tally:
        kind = type(self.statistics)
        pairs = zip(self.statistics, other.statistics)
        statistics = kind(*(a + b for a, b in pairs))
        log_likelihood_S = self.log_likelihood_S + other.log_likelihood_S
        weight = self.weight + other.weight
        return Tally(statistics, log_likelihood_S, weight)


def piece_weights(weights_N: Tensor | None, piece: Piece) -> Tensor | None:
    """Weights (B,) of a piece's rows; None where all are one."""
    if weights_N is None:
        return None
    return weights_N[piece.index].to(piece.x_BD.device)


def expect(workers: Workers, kernel: Any, pieces: Iterator[Piece], weights_N: Tensor | None,
           assign: Assign | None = None) -> Tally:
    """The E step over all pieces, with the sums for the M step; the sums are added in the order of the pieces."""
    total: Tally | None = None
    for part in workers.map(lambda piece: _expect_piece(kernel, piece, weights_N, assign), pieces):
        total = part if total is None else total + part
    assert total is not None
    return total


def _expect_piece(kernel: Any, piece: Piece, weights_N: Tensor | None, assign: Assign | None) -> Tally:
    if assign is None:
        state, log_joint_SKB = kernel.joint(piece)
        resp_SKB, log_density_SB = posterior(log_joint_SKB)
    else:
        state = kernel.state(piece)
        resp_SKB = assign(piece)
        log_density_SB = torch.zeros_like(resp_SKB[:, 0])
    rows = float(len(piece.x_BD))
    weight = torch.tensor(rows, dtype=torch.float64, device=resp_SKB.device)
    weight_B = piece_weights(weights_N, piece)
    if weight_B is not None:
        resp_SKB = resp_SKB * weight_B.to(resp_SKB.dtype)
        log_density_SB = log_density_SB * weight_B
        weight = weight_B.double().sum()
    statistics = kernel.tally(state, resp_SKB)
    return Tally(statistics, log_density_SB.double().sum(1), weight)


def step(workers: Workers, family: Family, rows: Rows, weights_N: Tensor | None, params: Params | None,
         assign: Assign | None = None, batch: int = 1) -> tuple[Params, Tensor]:
    """One E and one M step: new parameters, and the mean log-likelihood (S,) of the old ones.

    `assign` gives the responsibilities instead of the E step. `batch` is starts times components.
    A step whose result is too badly conditioned for the way it was computed is done again a more careful way.
    """
    for level in family.levels(params):
        kernel = family.kernel(params, level)
        pieces = rows.pieces(kernel.rows(batch))
        tally = expect(workers, kernel, pieces, weights_N, assign).over(rows.processes)
        new = family.maximise(tally, params, level)
        bound_S = tally.log_likelihood_S
        if params is not None:
            bound_S = bound_S + family.log_prior(params)
        bound_S = bound_S / tally.weight
        if family.trusts(new, level):
            return new, bound_S
        if assign is not None:
            params = new  # their means are an accurate origin for the careful way
    if assign is None:  # a start may still be given better values
        family.refuse(new)
    return new, bound_S


@dataclass
class Run:
    """What became of one start."""

    params: Params
    lower_bounds: list[float] = field(default_factory=list)
    converged: bool = False

    @property
    def lower_bound(self) -> float:
        """The last lower bound."""
        if not self.lower_bounds:
            return -torch.inf
        return self.lower_bounds[-1]

    def record(self, params: Params, bound: float, tol: float, previous: float = -torch.inf) -> float:
        """Note a step and whether it converged; returns its gain, over `previous` where it is the first."""
        before = self.lower_bound if self.lower_bounds else previous
        gain = bound - before
        self.params, self.converged = params, abs(gain) < tol
        self.lower_bounds.append(bound)
        return gain


class Fixed(tuple[str, ...]):
    """Names of parameters that stay as they were, and of those that stay for `some` components alone."""

    some: dict[str, list[int]]

    def __new__(cls, names: Iterable[str] = (), some: dict[str, list[int]] | None = None) -> Fixed:
        made = super().__new__(cls, names)
        made.some = some or {}
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # for copies and pickles
        return tuple(self), self.some


def held(names: tuple[str, ...], name: str, new: Tensor, params: Params | None) -> Tensor:
    """A new parameter (S, K, ...) with the old value where it stays."""
    if params is None:
        return new
    if name in names:
        return params[name]
    components = names.some.get(name) if isinstance(names, Fixed) else None
    if components is None:
        return new
    kept = new.clone()
    kept[:, components] = params[name][:, components]
    return _filled_up(kept, components) if name == "weights" else kept


def _filled_up(weights_SK: Tensor, components: list[int]) -> Tensor:
    """Weights of which some are given; the others share what is left in their proportions."""
    free_K = torch.ones(weights_SK.shape[1], dtype=torch.bool, device=weights_SK.device)
    free_K[components] = False
    given_S1 = weights_SK[:, ~free_K].sum(1, keepdim=True)
    free_SK = weights_SK[:, free_K]
    total_S1 = free_SK.sum(1, keepdim=True).clamp(min=1e-300)
    filled_SK = weights_SK.clone()
    filled_SK[:, free_K] = free_SK * (1 - given_S1) / total_S1
    return filled_SK


def with_fixed(names: tuple[str, ...], new: Params, params: Params | None) -> Params:
    """New parameters with the old values where they stay; none stay in the step that makes a start."""
    kept = {}
    for name, value in new.items():
        kept[name] = held(names, name, value, params)
    return kept


def select(params: Params, index: Any) -> Params:
    """Some starts of a batch."""
    return {name: value[index] for name, value in params.items()}


def climb(one_step: Callable[[Params], tuple[Params, Tensor]], params: Params, *, tol: float, max_iter: int,
          previous: float = -torch.inf, report: Callable[[int, float], None] | None = None) -> list[Run]:
    """EM from a batch of starts until each start gains less than `tol` a step; starts that are done leave the batch.

    report: called after every iteration with its number and the gain of the last active start.
    """
    starts = len(params["weights"])
    runs = [Run(select(params, start)) for start in range(starts)]
    active = runs
    for iteration in range(1, max_iter + 1):
        params, bounds_S = one_step(params)
        for place, bound in enumerate(bounds_S.tolist()):
            own = select(params, place)
            gain = active[place].record(own, bound, tol, previous)
        if report is not None:
            report(iteration, gain)
        going = [place for place, run in enumerate(active) if not run.converged]
        if not going:
            break
        if len(going) < len(active):
            active = [active[place] for place in going]
            params = select(params, going)
    return runs


def best(runs: list[Run]) -> Run:
    """The first run with the highest bound."""
    return max(runs, key=lambda run: run.lower_bound)
