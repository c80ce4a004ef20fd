"""The best model under a budget, by a fitted law; how sure that is; and which run would tell most.

Legend: N candidates or runs, P parameters, B bootstrap draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.scaling.fitting import log_loss
from mixwell.scaling.law import Curve, Fit, Law
from mixwell.scaling.runs import Runs, read

SIZES = 400  # sizes tried over the range, and once more around the best


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent; `ValueError` for a number that is not above 0."""

    flops: float  # of training
    memory_bytes: float = float("inf")  # of all weights
    bytes_per_parameter: float = 2.0
    least: float = 1e6  # parameters n between which is looked
    most: float = 1e13

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; expected a number above 0")
        least, most = self.least, self.most
        if not least < most:
            raise ValueError(f"least={least:g}, most={most:g}; expected the first to be below")


@dataclass(frozen=True)
class Best:
    """A model that a law calls best."""

    columns: dict[str, float]  # those of the law
    loss: float
    total_parameters: float
    at_edge: bool  # whether the least or the most size tried came out, so that the range decides


def best(curve: Curve, budget: Budget, choices: Mapping[str, Sequence[float]] | None = None) -> Best:
    """Size, tokens and the law's other columns of least loss under a budget.

    choices: the values that each other column may take (of `e`, say, 1, 2, 4, 8). A law without FLOPs by size and
    tokens, a column without choices, and a budget that nothing meets raise `MixwellError`.
    """
    free = _free(curve.law, choices or {})
    possible = []
    for combination in itertools.product(*free.values()):
        others = dict(zip(free, combination))
        found = _of_combination(curve, budget, others)
        if found is not None:
            possible.append(found)
    if not possible:
        raise MixwellError(f"no model fits into {budget.memory_bytes:g} bytes and {budget.flops:g} FLOPs; the least "
                           f"size tried has {budget.least:g} parameters.")
    return min(possible, key=lambda one: one.loss)


def _free(law: Law, choices: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The law's columns beside size and tokens, and what each may be."""
    columns = set(law.columns)
    if not {"n", "d"} <= columns:
        raise MixwellError(f"the law of {', '.join(law.columns)} has no size n and tokens d to choose.")
    found = {}
    for name in sorted(columns - {"n", "d"}):
        if not choices.get(name):
            raise MixwellError(f"choices for {name!r} are missing; give those that may be, such as {name}=1,2,4,8.")
        found[name] = choices[name]
    return found


def _of_combination(curve: Curve, budget: Budget, others: Mapping[str, float]) -> Best | None:
    sizes_N = np.geomspace(budget.least, budget.most, SIZES)
    coarse = _tried(curve, budget, sizes_N, others)
    if coarse is None:
        return None
    step = sizes_N[1] / sizes_N[0]
    two_steps = step**2
    middle = coarse.columns["n"]
    low = max(budget.least, middle / two_steps)
    high = min(budget.most, middle * two_steps)
    nearer_N = np.geomspace(low, high, SIZES)
    return _tried(curve, budget, nearer_N, others) or coarse


def _tried(curve: Curve, budget: Budget, sizes_N: np.ndarray, others: Mapping[str, float]) -> Best | None:
    """The best of these sizes that the memory holds, each on the tokens that its FLOPs allow."""
    runs = {"n": sizes_N}
    for name, value in others.items():
        runs[name] = np.full_like(sizes_N, value)
    total_N = curve.law.total_parameters(runs)
    fits_N = total_N * budget.bytes_per_parameter <= budget.memory_bytes
    if not fits_N.any():
        return None
    runs["d"] = budget.flops / curve.law.flops_per_token(runs)
    loss_N = np.where(fits_N, curve.predict(runs), np.inf)
    place = int(loss_N.argmin())
    columns = {name: float(runs[name][place]) for name in curve.law.columns}
    edges = [budget.least, budget.most]
    at_edge = bool(np.isclose(columns["n"], edges).any())
    loss, total = float(loss_N[place]), float(total_N[place])
    return Best(columns, loss, total, at_edge)


def best_interval(draws: Sequence[Fit], budget: Budget, choices: Mapping[str, Sequence[float]] | None = None,
                  level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Between which numbers the best columns and the loss lie over bootstrap draws."""
    every = [best(fit, budget, choices) for fit in draws]
    rows = [{**one.columns, "loss": one.loss} for one in every]
    tail = (1 - level) / 2
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        ends = np.quantile(values, [tail, 1 - tail])
        low, high = map(float, ends)
        found[name] = low, high
    return found


def jacobian(curve: Curve, runs: Runs) -> np.ndarray:
    """Derivatives of log L with respect to the law's linear parameters: [N, P]."""
    terms_NKP = curve.law.terms(runs, curve.shape_Q)
    log_terms_NK = terms_NKP @ curve.theta_P
    log_loss_N = log_loss(terms_NKP, curve.theta_P)
    share_NK = np.exp(log_terms_NK - log_loss_N[:, None])
    return np.einsum("nk,nkp->np", share_NK, terms_NKP)


def next_run(fit: Fit, candidates: Any, target: Any) -> np.ndarray:
    """By what share each candidate run would lessen the variance of the predicted log loss at the target: [N].

    By the delta method at the fitted parameters, runs scattering alike: with the information M of the runs so far, a
    run of gradient j takes (g M^-1 j)^2 / (1 + j M^-1 j) off the variance g M^-1 g.

    target: one row with the law's columns.
    """
    columns = fit.law.columns
    so_far = jacobian(fit, fit.runs)
    offered = jacobian(fit, read(candidates, columns))
    wanted = jacobian(fit, read(target, columns))[0]
    information_PP = so_far.T @ so_far
    inverse_PP = np.linalg.pinv(information_PP, rcond=1e-12, hermitian=True)
    toward_N = offered @ inverse_PP @ wanted
    own_N = np.einsum("np,pq,nq->n", offered, inverse_PP, offered)
    before = wanted @ inverse_PP @ wanted
    taken_N = toward_N**2 / (1 + own_N)
    return taken_N / before
