"""Asynchronous search by a joint model of configurations and epochs: rungs as in ASHA, proposals by a Gaussian process.

**Equation:** rungs r = least eta^k. f(x, r) ~ GP, Matern-5/2 in x times Matern-5/2 in r / R, on standardised losses at
    rungs. A free worker gets the configuration of the largest expected improvement E max(best - f, 0) at the largest
    rung that has as many losses as x has features, averaged over joint draws of f for trials that are not back yet;
    best is the lowest mean there of the trials started. A trial among the best 1/eta of its rung goes on.
**Shapes:** trials with features x [N, D] in; one trial, its loss and the epochs spent out.
**Reference:** Klein et al. 2020 (2003.10865).
**Differs:** the workers are simulated, an epoch a unit of time, and candidates are the configurations at hand. The
    kernel is a product, not the released default of decaying exponentials; one length for all features, by likelihood.
**Fails when:** features are on different scales (they are brought to 0..1 here, not warped), or trials are so many that
    the cube of what was seen counts.
**Cost:** O(M^3 + M N) a proposal with M losses seen.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mixwell.core.method import method
from mixwell.scaling.search._planted import power_curves
from mixwell.scaling.trials import Found, Trials

LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)  # tried for the features, which span 0 to 1
SPAN = 1.0  # length of the epochs' kernel, as a share of the most
NOISE = 1e-2  # variance beside that of the standardised losses
FAR = 10.0  # deviations above the middle at which a loss is cut: one diverged run must not flatten the others


@dataclass(frozen=True, kw_only=True)
class Config:
    """Budget, rungs and workers; `ValueError` for a value out of range."""

    proposals: int = 20  # configurations started, at least 1
    workers: int = 4  # at least 1
    eta: int = 3  # one in eta goes on, at least 2
    least: int = 1  # epochs at the first rung, at least 1
    first: int = 4  # configurations drawn at random before the model is asked, at least 1
    fantasies: int = 8  # joint draws for the trials that are out, at least 1

    def __post_init__(self) -> None:
        values = (self.proposals, self.workers, self.eta - 1, self.least, self.first, self.fantasies)
        if min(values) < 1:
            raise ValueError(f"{self} came; expected eta of at least 2 and all others at least 1")


class Seen(NamedTuple):
    """Losses at rungs, with what they are of."""

    inputs_MD: np.ndarray  # features and, last, epochs as a share of the most
    losses_M: np.ndarray


@method(title="Asynchronous search by a joint Gaussian process", year=2020,
        paper="Model-based Asynchronous Hyperparameter and Neural Architecture Search")
def asynchronous_gp(trials: Trials, config: Config, generator: np.random.Generator) -> Found:
    """The lowest loss at the highest rung that was reached."""
    levels = rungs(trials.most, config)
    fresh = trials.drawn(len(trials), generator)
    by_rung: list[dict[int, float]] = [{} for _ in levels]
    out: list[tuple[int, int, int]] = []  # when it is back, trial, rung
    started = now = 0
    while True:
        while len(out) < config.workers and started < config.proposals and fresh:
            pending = [(trial, rung) for _, trial, rung in out]
            trial = fresh[0]
            if started >= config.first:
                trial = proposed(trials, levels, by_rung, pending, fresh, config, generator)
            fresh.remove(trial)
            heapq.heappush(out, (now + levels[0], trial, 0))
            started += 1
        if not out:
            break
        now, trial, rung = heapq.heappop(out)
        by_rung[rung][trial] = trials.loss(trial, levels[rung])
        if rung + 1 < len(levels) and goes_on(by_rung[rung], trial, config.eta):
            back = now + levels[rung + 1] - levels[rung]
            heapq.heappush(out, (back, trial, rung + 1))
    reached = [losses for losses in by_rung if losses]
    return trials.found(reached[-1])


def rungs(most: int, config: Config) -> list[int]:
    """Epochs of every rung, the last the most."""
    levels = []
    epochs = config.least
    while epochs < most:
        levels.append(epochs)
        epochs *= config.eta
    return [*levels, most]


def goes_on(losses: dict[int, float], trial: int, eta: int) -> bool:
    """Whether a trial is among the best 1/eta of its rung so far; the first come go on."""
    own = losses[trial]
    better = sum(loss < own for loss in losses.values())
    places = max(1, len(losses) // eta)
    return better < places and math.isfinite(own)


def proposed(trials: Trials, levels: list[int], by_rung: list[dict[int, float]], pending: list[tuple[int, int]],
             fresh: list[int], config: Config, generator: np.random.Generator) -> int:
    """The fresh trial of the largest expected improvement, averaged over fantasies of the pending ones."""
    shares = [level / trials.most for level in levels]
    unit_ND = _unit(trials.features_ND)
    places = [(trial, rung) for rung, losses in enumerate(by_rung) for trial in losses]
    if not places:
        return fresh[0]
    losses_M = np.array([by_rung[rung][trial] for trial, rung in places])
    standard_M = _standardised(losses_M)
    seen = Seen(_inputs(unit_ND, shares, places), standard_M)
    asked = _asked(by_rung, unit_ND.shape[1])
    started = {trial for trial, _ in [*places, *pending]}
    known_KD = _inputs(unit_ND, shares, [(trial, asked) for trial in sorted(started)])
    wanted_CD = _inputs(unit_ND, shares, [(trial, asked) for trial in fresh])
    length = likeliest(seen)
    told = _fantasies(seen, unit_ND, shares, pending, length, config.fantasies, generator)
    gain_FC = [gains(one, known_KD, wanted_CD, length) for one in told]
    gain_C = np.mean(gain_FC, axis=0)
    return fresh[int(gain_C.argmax())]


def gains(told: Seen, known_KD: np.ndarray, wanted_CD: np.ndarray, length: float) -> np.ndarray:
    """Expected improvements [C] on the lowest mean among the trials that were started, pending ones included."""
    mean_K, _ = posterior(told, known_KD, length)
    mean_C, covariance_CC = posterior(told, wanted_CD, length)
    return improvement(mean_K.min(), mean_C, covariance_CC.diagonal())


def _fantasies(seen: Seen, unit_ND: np.ndarray, shares: list[float], pending: list[tuple[int, int]], length: float,
               count: int, generator: np.random.Generator) -> list[Seen]:
    """What was seen, with joint draws of the losses that the pending trials will have at their rungs."""
    if not pending:
        return [seen]
    pending_PD = _inputs(unit_ND, shares, pending)
    mean_P, covariance_PP = posterior(seen, pending_PD, length)
    inputs_MD = np.vstack([seen.inputs_MD, pending_PD])
    draws = generator.multivariate_normal(mean_P, covariance_PP, size=count, method="eigh")
    return [Seen(inputs_MD, np.append(seen.losses_M, drawn_P)) for drawn_P in draws]


def _asked(by_rung: list[dict[int, float]], features: int) -> int:
    """The largest rung with as many losses as there are features; the first where none has."""
    full = [rung for rung, losses in enumerate(by_rung) if len(losses) >= features]
    return max(full, default=0)


def _unit(features_ND: np.ndarray) -> np.ndarray:
    """Every feature from 0 to 1; one that never varies is 0."""
    low_D = features_ND.min(0)
    span_D = np.ptp(features_ND, axis=0)
    span_D[span_D == 0] = 1
    return (features_ND - low_D) / span_D


def _inputs(unit_ND: np.ndarray, shares: list[float], places: list[tuple[int, int]]) -> np.ndarray:
    """Features and epochs of trials at rungs."""
    rows = [np.append(unit_ND[trial], shares[rung]) for trial, rung in places]
    return np.array(rows)


def _standardised(losses_M: np.ndarray) -> np.ndarray:
    """Losses around their median, in robust deviations, cut where they are far off."""
    finite_M = losses_M[np.isfinite(losses_M)]
    if not finite_M.size:
        return np.zeros_like(losses_M)
    middle = np.median(finite_M)
    off_M = np.abs(finite_M - middle)
    deviation = 1.4826 * np.median(off_M)
    if deviation == 0:
        deviation = off_M.max() or 1.0
    scaled_M = (losses_M - middle) / deviation
    return np.minimum(scaled_M, FAR)


def kernel(left_LD: np.ndarray, right_RD: np.ndarray, length: float) -> np.ndarray:
    """Matern-5/2 in the features times Matern-5/2 in the epochs: [L, R]."""
    from scipy.spatial.distance import cdist

    *features_left, epochs_left = left_LD.T
    *features_right, epochs_right = right_RD.T
    rows_left = np.stack(features_left, 1)
    rows_right = np.stack(features_right, 1)
    apart_LR = cdist(rows_left, rows_right)
    epochs_LR = np.abs(epochs_left[:, None] - epochs_right)
    return _matern(apart_LR / length) * _matern(epochs_LR / SPAN)


def _matern(distance: np.ndarray) -> np.ndarray:
    scaled = math.sqrt(5) * distance
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def posterior(seen: Seen, wanted_CD: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean [C] and covariance [C, C] of the process at some inputs."""
    inputs_MD, losses_M = seen
    own_MM = kernel(inputs_MD, inputs_MD, length) + NOISE * np.eye(len(losses_M))
    cross_MC = kernel(inputs_MD, wanted_CD, length)
    solved_MC = np.linalg.solve(own_MM, cross_MC)
    prior_CC = kernel(wanted_CD, wanted_CD, length)
    return solved_MC.T @ losses_M, prior_CC - cross_MC.T @ solved_MC


def likeliest(seen: Seen) -> float:
    """The length of the highest marginal likelihood."""
    inputs_MD, losses_M = seen
    scores = []
    for length in LENGTHS:
        own_MM = kernel(inputs_MD, inputs_MD, length) + NOISE * np.eye(len(losses_M))
        fit = losses_M @ np.linalg.solve(own_MM, losses_M)
        _, logdet = np.linalg.slogdet(own_MM)
        scores.append(fit + logdet)
    return LENGTHS[int(np.argmin(scores))]


def improvement(best: float, mean_C: np.ndarray, variance_C: np.ndarray) -> np.ndarray:
    """E max(best - f, 0) of normals."""
    from scipy.special import ndtr

    deviation_C = np.sqrt(np.maximum(variance_C, 1e-12))
    score_C = (best - mean_C) / deviation_C
    bell_C = np.exp(-(score_C**2) / 2) / math.sqrt(2 * math.pi)
    below_C = score_C * ndtr(score_C)
    return deviation_C * (below_C + bell_C)


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Forty configurations of two features, twenty of which are tried."""
    trials = power_curves(40, 9, generator)
    return {"trials": trials, "config": Config(proposals=20, fantasies=2)}
