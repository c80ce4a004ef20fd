"""The weights of least predicted loss, under what each domain may have.

Legend: D domains, M targets, S simulated mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixwell.core.errors import MixwellError
from mixwell.data.predictor import Mixture

AT_ONCE = 20_000  # mixtures predicted together
NEARER = 8.0  # how much a round's Dirichlet is stronger than the one before
WAY = 101  # mixtures looked at between a safe one and the best
LEAST = 1e-6  # of a domain's share of a Dirichlet


@dataclass(frozen=True, kw_only=True)
class Search:
    """How mixtures are simulated; `ValueError` for a value out of range."""

    samples: int = 20_000  # drawn from a Dirichlet in every round
    kept: int = 128  # of least loss, whose mean is the answer
    strength: float = 1.0  # of the first Dirichlet: larger stays nearer to the prior, above 0
    rounds: int = 3  # each around the mean of what the one before kept, and eight times as near to it

    def __post_init__(self) -> None:
        kept = self.kept
        samples = self.samples
        if not 1 <= kept <= samples:
            raise ValueError(f"kept={kept}, samples={samples}; expected 1 <= kept <= samples")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; expected at least 1")
        if not self.strength > 0:
            raise ValueError(f"strength is {self.strength}; expected a number above 0")


@dataclass(frozen=True)
class Optimum:
    """The mixture that is thought best."""

    weights_D: np.ndarray
    losses_M: np.ndarray  # predicted
    caps_D: np.ndarray  # under which it was sought


def caps(fitted: Mixture, available: Mapping[str, float] | None = None, tokens: float | None = None,
         epochs: float = 1.0, beyond: bool = False) -> np.ndarray:
    """The most that each domain may have: [D].

    The largest weight that any run had, unless `beyond`: no predictor knows more. available: tokens of a domain, which
    `tokens` of training may go through `epochs` times at most. A domain without tokens, and caps that sum to less than
    1, raise `MixwellError`.
    """
    runs = fitted.runs
    most_D = np.ones(len(runs.domains)) if beyond else runs.weights_ND.max(0)
    return limited(runs.domains, most_D, available, tokens, epochs)


def limited(domains: Sequence[str], most_D: np.ndarray, available: Mapping[str, float] | None, tokens: float | None,
            epochs: float) -> np.ndarray:
    """`most_D` under what the available tokens allow, as `caps` has it: [D]; before any run was trained, too."""
    if available is not None:
        if not tokens:
            raise MixwellError("available tokens are given, but not how many are trained on; give tokens, too.")
        own_D = np.array([_available(available, name) for name in domains])
        most_D = np.minimum(most_D, epochs * own_D / tokens)
    if most_D.sum() < 1:
        raise MixwellError(f"the caps of all domains sum to {most_D.sum():.3g}; expected at least 1. Allow more "
                           "epochs, or train on fewer tokens.")
    return most_D


def _available(available: Mapping[str, float], name: str) -> float:
    found = float(available.get(name, 0.0))
    if found > 0 and math.isfinite(found):
        return found
    raise MixwellError(f"domain {name!r} has {found:g} tokens available; expected a number above 0.")


def best_weights(fitted: Mixture, importance: Mapping[str, float] | None = None, *, prior_D: np.ndarray | None = None,
                 caps_D: np.ndarray | None = None, search: Search | None = None,
                 generator: np.random.Generator | None = None) -> Optimum:
    """The mean of the best of many simulated mixtures, which is steadier than the very best.

    One round is RegMix's simulation; where a mixture of one domain is best, few of its draws come near, hence more.
    importance: of targets in the mean loss that is minimised; default all alike. prior_D: around which mixtures are
    drawn first, default the mean of the runs. An unknown target raises `MixwellError`.
    """
    search = search or Search()
    generator = generator or np.random.default_rng(42)
    wanted_M = shares_of(fitted, importance)
    caps_D = caps(fitted) if caps_D is None else caps_D
    weights_D = fitted.runs.weights_ND.mean(0) if prior_D is None else prior_D
    for number in range(search.rounds):
        strength = search.strength * NEARER**number
        around_D = np.maximum(weights_D / weights_D.sum(), LEAST)
        drawn_SD = generator.dirichlet(strength * around_D, search.samples)
        allowed_SD = capped(drawn_SD, caps_D)
        scores_S = _scores(fitted, allowed_SD, wanted_M)
        best_S = np.argpartition(scores_S, search.kept - 1)[: search.kept]
        weights_D = allowed_SD[best_S].mean(0)
    losses_NM = fitted.predict(weights_D)
    return Optimum(weights_D, losses_NM[0], caps_D)


def shares_of(fitted: Mixture, importance: Mapping[str, float] | None) -> np.ndarray:
    """Each target's share of the mean loss that is minimised, [M]; an unknown target raises `MixwellError`."""
    targets = fitted.runs.targets
    if importance is None:
        importance = dict.fromkeys(targets, 1.0)
    for name in importance:
        if name not in targets:
            raise MixwellError(f"unknown target {name!r}; the runs have {', '.join(targets)}.")
    wanted = [float(importance.get(name, 0.0)) for name in targets]
    total = sum(wanted)
    if min(wanted) < 0 or not 0 < total < math.inf:
        raise MixwellError("importances must be finite, at least 0 and not all 0.")
    return np.array(wanted) / total


def capped(weights_SD: np.ndarray, caps_D: np.ndarray) -> np.ndarray:
    """What exceeds a cap goes to the other domains in proportion to their weights, until nothing does: [S, D]."""
    found_SD = weights_SD.copy()
    for _ in range(len(caps_D)):
        over_SD = found_SD > caps_D
        if not over_SD.any():
            break
        found_SD = np.minimum(found_SD, caps_D)
        free_SD = np.where(found_SD < caps_D, found_SD, 0.0)
        room_S1 = free_SD.sum(1, keepdims=True)
        missing_S1 = 1 - found_SD.sum(1, keepdims=True)
        found_SD += missing_S1 * free_SD / np.maximum(room_S1, 1e-300)
    return found_SD


def _scores(fitted: Mixture, weights_SD: np.ndarray, wanted_M: np.ndarray) -> np.ndarray:
    """Predicted mean loss of every mixture; targets that do not count are not predicted."""
    total_S = np.zeros(len(weights_SD))
    for target in np.flatnonzero(wanted_M):
        model, importance = fitted.models[target], wanted_M[target]
        for start in range(0, len(weights_SD), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            losses_S = model(weights_SD[part], None)
            total_S[part] += importance * losses_S
    return total_S


def steadied(fitted: Mixture, found: Optimum, safe_D: np.ndarray, errors_NM: np.ndarray, within: float = 1.0,
             importance: Mapping[str, float] | None = None) -> Optimum:
    """The mixture nearest to a safe one, on the way to the best, that is as good as the best by what the runs tell.

    Where losses are level around the best, its exact place is noise, and often a corner. As good is a predicted mean
    loss above the least by no more than `within` standard errors of the runs' mean; 0 leaves the best as it is.
    errors_NM: of `Mixture.out_of_fold`. safe_D: within the caps.
    """
    wanted_M = shares_of(fitted, importance)
    error_N = errors_NM @ wanted_M
    count = len(error_N)
    slack = within * np.sqrt(np.mean(error_N**2) / count)
    step_S = np.linspace(0.0, 1.0, WAY)[:, None]
    apart_D = found.weights_D - safe_D
    way_SD = safe_D + step_S * apart_D
    log_S = np.log(_scores(fitted, way_SD, wanted_M))
    good_S = log_S <= log_S[-1] + slack
    place = int(good_S.argmax())
    (losses_M,) = fitted.predict(way_SD[place])
    return Optimum(way_SD[place], losses_M, found.caps_D)
