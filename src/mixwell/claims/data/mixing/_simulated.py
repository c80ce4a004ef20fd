"""Runs of a learner whose loss on mixtures is known: word counts over domains that share some of their words.

Legend: N runs, D domains, V words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixwell.data.predictor import Mixture, Predictor, rank_correlation
from mixwell.data.runs import MixingRuns

DOMAINS, WORDS, TOKENS = 4, 400, 20_000
NAMES = ("code", "docs", "prose", "tables")


@dataclass(frozen=True)
class World:
    """Word shares of every domain."""

    share_DV: np.ndarray

    def losses(self, weights_ND: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cross-entropy of every domain under words counted in TOKENS draws from each mixture, smoothed: [N, D]."""
        mixed_NV = weights_ND @ self.share_DV
        count_NV = rng.multinomial(TOKENS, mixed_NV)
        smoothed_NV = count_NV + 0.5
        total = TOKENS + 0.5 * WORDS
        log_NV = np.log(smoothed_NV / total)
        return -log_NV @ self.share_DV.T

    def runs(self, count: int, rng: np.random.Generator) -> MixingRuns:
        """Mixtures drawn evenly, with their losses."""
        weights_ND = rng.dirichlet(np.ones(DOMAINS), count)
        return MixingRuns(NAMES, NAMES, weights_ND, self.losses(weights_ND, rng))


def world(rng: np.random.Generator) -> World:
    """Domains of which each pair shares half of its mass with a common one."""
    even_V = np.ones(WORDS)
    common_V = rng.dirichlet(0.3 * even_V)
    own_DV = rng.dirichlet(0.1 * even_V, DOMAINS)
    twice_DV = common_V + own_DV
    return World(twice_DV / 2)


def scores(fitted: Mixture, held: MixingRuns) -> dict[str, float]:
    """Root mean square error of log L in percent, and Spearman's rho in the mean of the targets."""
    told_NM = fitted.predict(held.weights_ND)
    error = percent(told_NM, held.losses_NM)
    ranks = []
    for told_N, loss_N in zip(told_NM.T, held.losses_NM.T):
        rho = rank_correlation(told_N, loss_N)
        ranks.append(rho)
    return {"error": error, "rho": float(np.mean(ranks))}


def percent(told: np.ndarray, true: np.ndarray) -> float:
    """Root mean square error of log L in percent."""
    off = np.log(told) - np.log(true)
    square = np.mean(off**2)
    return 100 * float(np.sqrt(square))


def compared(sides: dict[str, Predictor], count: int, seed: int) -> dict[str, dict[str, float]]:
    """Predictors fitted to the same runs, scored on 300 others of the same world."""
    rng = np.random.default_rng([seed, 15])
    here = world(rng)
    seen = here.runs(count, rng)
    held = here.runs(300, rng)
    found = {}
    for name, side in sides.items():
        fitted = side.fit(seen)
        found[name] = scores(fitted, held)
    return found
