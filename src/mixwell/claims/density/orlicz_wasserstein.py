"""Orlicz-Wasserstein distance: mass far from the true atoms vanishes faster than the distance to them falls.

Paper: On Excess Mass Behavior in Gaussian Mixture Models with Orlicz-Wasserstein Distances.
Tried: variational Dirichlet process mixtures (scikit-learn's, ten components, unit variance held) on 100 to 2,700
numbers from atoms at -5, 3 and 5; slopes in the logarithm of the rows of the log of the mixing mass further than 1 from
every atom and of the log of W_1, means of three data sets. Against it: a slope of the mass that is no steeper, or
W_Phi below W_1, or a mass above what W_Phi allows, 1 / Phi(1 / W_Phi), with Phi(r) = exp(r^2) - 1, for any fit. Beside
it: the slope of log W_Phi.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from mixwell.claims._judging import provided
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.values.orlicz_wasserstein import Config, orlicz_wasserstein

ROWS, SETS, FAR, STIFF = (100, 300, 900, 2700), 3, 1.0, 1e8
ATOMS, WEIGHTS = np.array([[-5.0], [3.0], [5.0]]), np.array([0.5, 0.3, 0.2])
SMALLEST = 1e-12  # masses are not told apart below it


def measure(x: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Far mass, W_1 and W_Phi of the mixing measure fitted to rows (N, 1)."""
    from sklearn.mixture import BayesianGaussianMixture

    model = BayesianGaussianMixture(n_components=10, covariance_type="tied", covariance_prior=[[STIFF]],
                                    degrees_of_freedom_prior=STIFF, weight_concentration_prior=1.0, tol=1e-4,
                                    max_iter=1000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x)
    far = float(model.weights_[np.abs(model.means_ - ATOMS.T).min(1) > FAR].sum())
    weights, means, true_weights, atoms = map(torch.from_numpy, (model.weights_, model.means_, WEIGHTS, ATOMS))
    w_1, w_phi = (orlicz_wasserstein(weights / weights.sum(), means, true_weights, atoms, config)
                  for config in (Config(phi="power", order=1.0), Config(tol=1e-6)))
    return max(far, SMALLEST), w_1, w_phi


def claim(bench: Bench) -> Evidence:
    """Slopes of far mass, W_1 and W_Phi against rows."""
    slopes, bounded = [], True
    for seed in bench.seeds:
        rng = np.random.default_rng(seed)
        means = []
        for rows in ROWS:
            found = []
            for _ in range(SETS):
                x = ATOMS[rng.choice(3, rows, p=WEIGHTS)] + rng.normal(size=(rows, 1))
                far, w_1, w_phi = measure(x, seed)
                bounded &= w_1 <= w_phi * (1 + 1e-5) and far <= 1.001 / np.expm1(min((FAR / w_phi) ** 2, 690.0))
                found.append((far, w_1, w_phi))
            means.append(np.mean(found, 0))
        slopes.append(np.polyfit(np.log(ROWS), np.log(means), 1)[0])
    mass, near, orlicz = np.stack(slopes, 1).tolist()
    evidence = weigh("Mass far from the true atoms falls with a steeper power of the rows than W_1.",
                     "slope of the logarithm against log rows", mass, near)
    return provided(evidence, bool(bounded), "W_Phi does not bound W_1 or the far mass.", slope_of_w_phi=orlicz)
