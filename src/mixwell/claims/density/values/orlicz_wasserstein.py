"""Orlicz-Wasserstein distance: mass far from the true atoms vanishes faster than the distance to them falls.

Paper: On Excess Mass Behavior in Gaussian Mixture Models with Orlicz-Wasserstein Distances.
Tried: variational Dirichlet process mixtures (scikit-learn's, ten components, unit variance held) on 100 to 2,700
numbers from atoms at -5, 3 and 5; slopes in the logarithm of the rows of the log of the mixing mass further than 1 from
every atom and of the log of W_1, means of three data sets. Against it: a slope of the mass that is no steeper, or
W_Phi below W_1, or a mass above what W_Phi allows, 1 / Phi(1 / W_Phi), with Phi(r) = exp(r^2) - 1, for more than a
thousandth of the fits. Beside it: the slope of log W_Phi.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.density._data import quietly
from mixwell.density.values.orlicz_wasserstein import Config, orlicz_wasserstein

ROWS, SETS, FAR, STIFF = (100, 300, 900, 2700), 3, 1.0, 1e8
ATOMS, WEIGHTS = np.array([[-5.0], [3.0], [5.0]]), np.array([0.5, 0.3, 0.2])
SMALLEST = 1e-12  # masses are not told apart below it
BOUNDED = Comparison(quantity="share bounded", baseline=1.0, lower_is_better=False, at_least=-0.001)

CLAIM = Claim("Mass far from the true atoms falls with a steeper power of the rows than W_1.",
              "slope of the logarithm against log rows", quantity="slope", provided=(BOUNDED,))


class Found(NamedTuple):
    """Of a fitted mixing measure against the true one."""

    far: float  # mass further than FAR from every atom
    w_1: float
    w_phi: float

    def bounded(self) -> bool:
        """Whether W_Phi is above W_1, and the far mass below 1 / Phi(FAR / W_Phi)."""
        power = min((FAR / self.w_phi) ** 2, 690.0)
        allowed = 1.001 / np.expm1(power)
        return self.w_1 <= self.w_phi * (1 + 1e-5) and bool(self.far <= allowed)


def measure(x: np.ndarray, seed: int) -> Found:
    """Fit rows (N, 1) and compare the mixing measures."""
    from sklearn.mixture import BayesianGaussianMixture

    model = BayesianGaussianMixture(n_components=10, covariance_type="tied", covariance_prior=[[STIFF]],
                                    degrees_of_freedom_prior=STIFF, weight_concentration_prior=1.0, tol=1e-4,
                                    max_iter=1000, random_state=seed)
    with quietly():
        model.fit(x)
    gaps = np.abs(model.means_ - ATOMS.T)
    away = gaps.min(1) > FAR
    far = float(model.weights_[away].sum())
    parts = (model.weights_, model.means_, WEIGHTS, ATOMS)
    weights, means, true_weights, atoms = map(torch.from_numpy, parts)
    weights = weights / weights.sum()
    linear, fine = Config(phi="power", order=1.0), Config(tol=1e-6)
    w_1 = orlicz_wasserstein(weights, means, true_weights, atoms, linear)
    w_phi = orlicz_wasserstein(weights, means, true_weights, atoms, fine)
    return Found(max(far, SMALLEST), w_1, w_phi)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows (rows, 1) around the atoms."""
    atom = ATOMS[rng.choice(3, rows, p=WEIGHTS)]
    return atom + rng.normal(size=(rows, 1))


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Slopes of far mass, W_1 and W_Phi against rows, and the share of fits that keep the bounds."""
    rng = np.random.default_rng(seed)
    means, bounded = [], []
    for rows in ROWS:
        found = [measure(draw(rng, rows), seed) for _ in range(SETS)]
        bounded += [one.bounded() for one in found]
        means.append(np.mean(found, 0))
    mass, near, orlicz = np.polyfit(np.log(ROWS), np.log(means), 1)[0].tolist()
    return {"method": {"slope": mass, "share bounded": mean(bounded)}, "baseline": {"slope": near},
            "W_Phi": {"slope": orlicz}}
