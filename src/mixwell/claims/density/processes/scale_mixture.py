"""Scale mixtures of network Gaussian processes: heavy tails are robust where the data leave the training range.

Paper: Scale Mixtures of Neural Network Gaussian Processes.
Tried: scikit-learn's diabetes table, standardised; the fifth of the patients with the largest body mass index is the
shifted test set, 150 of the others train. Predictive negative log density on the shifted set, the inverse-gamma process
(alpha = beta = 2) against the Gaussian one with the same kernel and noise. Against it: a loss that is no smaller.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from mixwell.claims._series import by_seed
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.processes.scale_mixture import ScaleMixtureProcess


def loss(seed: int, prior: Literal["inverse_gamma", "constant"]) -> float:
    """Mean negative log density on the shifted rows, in nats."""
    from sklearn.datasets import load_diabetes

    table, outcome = load_diabetes(return_X_y=True)
    mass = table[:, 2]
    bound = np.quantile(mass, 0.8)
    far = mass > bound
    near = np.flatnonzero(~far)
    order = np.random.default_rng(seed).permutation(near)
    rows = order[:150]
    x, y = standardised(table, rows), standardised(outcome, rows)
    model = ScaleMixtureProcess(prior=prior, alpha=2.0, beta=2.0, noise=0.1)
    model.fit(x[rows], y[rows])
    shifted = (x[far], y[far])
    log = model.log_density(*shifted)
    return -float(log.mean())


def standardised(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """By the mean and deviation of these rows."""
    known = values[rows]
    return (values - known.mean(0)) / known.std(0)


def claim(bench: Bench) -> Evidence:
    """Shifted loss with and without the prior on the scale."""
    heavy = by_seed(bench, loss, "inverse_gamma")
    gaussian = by_seed(bench, loss, "constant")
    return weigh("Heavy-tailed limits are robust out of distribution.", "negative log density in nats", heavy, gaussian)
