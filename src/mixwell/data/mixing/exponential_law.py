"""Data mixing laws: a domain's loss as a constant and an exponential of a linear form of the weights.

**Equation:** L_i(r) = c_i + k_i exp(sum_j t_ij r_j), c_i and k_i above 0.
**Shapes:** weights r [N, D] of runs, losses [N, M] of targets; every target is fitted by itself.
**Reference:** Ye et al. 2025 (2403.16952).
**Differs:** averaged Huber's loss on the raw loss, minimised by L-BFGS with the exact gradient in coordinates of unit
    effect, from a few random starts (the released tool runs up to 6,000). k_i and t_i are told up to a common shift
    only, since weights sum to 1. `spread` is ours: a normal prior of the slopes, without which a dozen runs can give
    one a slope that nothing bears out. Nesting with laws in steps and size, and latent targets, are left out.
**Fails when:** loss is not monotone along a direction of weights, as where two domains help only together.
**Cost:** O(starts * steps * N D) a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mixwell.core.method import method
from mixwell.data.predictor import Model, Predictor
from mixwell.data.runs import MixingRuns
from mixwell.scaling import fitting
from mixwell.scaling.fitting import Problem, log_loss

NOISE = 0.01  # share of the loss by which a run is thought to scatter, where slopes have a prior


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the law is fitted; `ValueError` for a value out of range."""

    delta: float = 0.02  # where Huber's loss turns from squares to absolute values, in the loss's unit, above 0
    starts: int = 4  # at least 1
    spread: float | None = None  # deviation that slopes are thought to have, above 0: few runs then tell no wild ones

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta is {self.delta}; expected a number above 0")
        if self.starts < 1:
            raise ValueError(f"starts is {self.starts}; expected at least 1")
        if self.spread is not None and not self.spread > 0:
            raise ValueError(f"spread is {self.spread}; expected a number above 0, or none")


@method(title="Exponential mixing law", year=2024,
        paper="Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling Performance")
class ExponentialLaw(Predictor):
    """c + k exp(t r)."""

    def default(self) -> Config:
        """The paper's delta."""
        return Config()

    def fit_one(self, runs: MixingRuns, target: int, generator: np.random.Generator) -> Model:
        """The law of one target."""
        losses_N = runs.losses_NM[:, target]
        terms_NKP = terms(runs.weights_ND)
        even_N = np.ones_like(losses_N)
        problem = Problem(lambda _: terms_NKP, (), losses_N, even_N, self.config.delta, in_logs=False,
                          pull_P=_pull(terms_NKP, losses_N, self.config.spread))
        starts_SP = _starts(losses_N, runs.weights_ND.shape[1], self.config.starts, generator)
        no_shape = np.empty((len(starts_SP), 0))
        found = fitting.solve(problem, starts_SP, no_shape)

        def predict(weights_ND: np.ndarray, steps_N: np.ndarray | None = None) -> np.ndarray:
            return np.exp(log_loss(terms(weights_ND), found.theta_P))

        return predict


def terms(weights_ND: np.ndarray) -> np.ndarray:
    """X [N, 2, 2 + D] of log c, log k and t."""
    N, D = weights_ND.shape
    found = np.zeros((N, 2, 2 + D))
    found[:, 0, 0] = 1.0
    found[:, 1, 1] = 1.0
    found[:, 1, 2:] = weights_ND
    return found


def _pull(terms_NKP: np.ndarray, losses_N: np.ndarray, spread: float | None) -> np.ndarray | None:
    """How hard slopes are drawn to 0 so that they are thought to be normal of this deviation: [P]; None for not at all.

    Losses are thought to scatter by a hundredth.
    """
    if spread is None:
        return None
    N, _, P = terms_NKP.shape
    noise = NOISE * losses_N.mean()
    ratio = noise / spread
    pull_P = np.full(P, ratio**2 / N)
    pull_P[:2] = 0.0
    return pull_P


def _starts(losses_N: np.ndarray, domains: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """A floor below the least loss, a height of the losses' spread, and slopes downwards."""
    least = losses_N.min()
    spread = max(np.ptp(losses_N), 1e-3 * least)
    floor_S = least * generator.uniform(0.3, 0.95, count)
    height_S = spread * generator.uniform(0.3, 1.5, count)
    slopes_SD = generator.uniform(-2.0, 0.0, (count, domains))
    heads_S2 = np.log([floor_S, height_S]).T
    return np.concatenate([heads_S2, slopes_SD], 1)


def example(generator: np.random.Generator) -> dict[str, Any]:
    """Runs that follow the law: each of four domains helps itself most."""
    weights_ND = generator.dirichlet(np.ones(4), 40)
    slopes_DM = -0.5 - 2.5 * np.eye(4)
    falling_NM = np.exp(weights_ND @ slopes_DM)
    losses_NM = 1.5 + 1.2 * falling_NM
    names = ("code", "docs", "prose", "tables")
    runs = MixingRuns(names, names, weights_ND, losses_NM)
    return {"runs": runs}
