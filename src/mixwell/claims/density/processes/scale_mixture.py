"""Scale mixtures of network Gaussian processes: heavy tails are robust where the data leave the training range.

Paper: Scale Mixtures of Neural Network Gaussian Processes.
Tried: scikit-learn's diabetes table, standardised; the fifth of the patients with the largest body mass index is the
shifted test set, 150 of the others train. Predictive negative log density on the shifted set, the inverse-gamma process
against the Gaussian one of the same kernel; the noise of both, and alpha = beta of the first, are those that do best on
near rows. Against it: a loss that is no smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Side
from mixwell.claims.grids import finer
from mixwell.density.processes.scale_mixture import ScaleMixtureProcess


def losses(bench: Bench, seed: int, *, prior: dict[str, Any], noise: float) -> dict[str, float]:
    """Mean negative log density in nats, on the shifted rows and on others that are as near as those of the fit."""
    from sklearn.datasets import load_diabetes

    table, outcome = load_diabetes(return_X_y=True)
    mass = table[:, 2]
    bound = np.quantile(mass, 0.8)
    far = mass > bound
    near = np.flatnonzero(~far)
    order = np.random.default_rng(seed).permutation(near)
    rows, others = np.split(order, [150])
    x, y = standardised(table, rows), standardised(outcome, rows)
    model = ScaleMixtureProcess(**prior, noise=noise).fit(x[rows], y[rows])
    shifted, alike = model.log_density(x[far], y[far]), model.log_density(x[others], y[others])
    return {"shifted": -float(shifted.mean()), "near": -float(alike.mean())}


def standardised(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """By the mean and deviation of these rows."""
    known = values[rows]
    return (values - known.mean(0)) / known.std(0)


NOISES = (0.1, 0.3, 1.0)
HEAVY = [{"prior": "inverse_gamma", "alpha": shape, "beta": shape} for shape in (1.0, 2.0, 4.0)]
GAUSSIAN = [{"prior": "constant"}]

CLAIM = Claim("Heavy-tailed limits are robust out of distribution.", "negative log density in nats", quantity="shifted",
              tuned_by="near",
              sides={"method": Side(losses, {}, {"prior": HEAVY, "noise": NOISES}),
                     "baseline": Side(losses, {}, {"prior": GAUSSIAN, "noise": finer(NOISES, 9)})})
