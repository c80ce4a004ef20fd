"""Scale mixtures of network Gaussian processes: heavy tails are robust where the data leave the training range.

Paper: Scale Mixtures of Neural Network Gaussian Processes.
Tried: scikit-learn's diabetes table, standardised; the fifth of the patients with the largest body mass index is the
shifted test set, 150 of the others train. Predictive negative log density on the shifted set, the inverse-gamma
process (alpha = beta = 2) against the Gaussian one with the same kernel and noise.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.processes.scale_mixture import ScaleMixtureProcess


def loss(prior: str, seed: int) -> float:
    """Mean negative log density on the shifted rows, in nats."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    far = data.data[:, 2] > np.quantile(data.data[:, 2], 0.8)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~far))[:150]
    centre, scale = data.data[rows].mean(0), data.data[rows].std(0)
    x = (data.data - centre) / scale
    y = (data.target - data.target[rows].mean()) / data.target[rows].std()
    model = ScaleMixtureProcess(prior=prior, alpha=2.0, beta=2.0, noise=0.1).fit(x[rows], y[rows])
    return -float(model.log_density(x[far], y[far]).mean())


def claim(bench: Bench) -> Evidence:
    """Shifted loss with and without the prior on the scale."""
    ours, theirs = ([loss(prior, seed) for seed in bench.seeds] for prior in ("inverse_gamma", "constant"))
    return weigh("Heavy-tailed limits are robust out of distribution.", "negative log density in nats", ours, theirs)
