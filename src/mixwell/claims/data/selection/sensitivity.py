"""Sensitivity sampling tells the mean loss better than even sampling with as many losses.

Paper: Data-Efficient Learning via Clustering-Based Sensitivity Sampling: Foundation Models and Beyond.
Tried: the mean loss of a weakly fitted softmax regression over 1,797 digits from 120 losses, those at the ten centres
counted; root mean square error over 200 draws, against 120 examples drawn evenly. Against it: an error that is no
lower.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.data.selection._digits import drawn
from mixwell.data.pool import Pool
from mixwell.data.selection.sensitivity import Config, sensitivities

CLAIM = Claim("Sensitivity sampling tells the mean loss from fewer losses.", "error of the mean loss in nats")
LOSSES, CENTRES, REPEATS = 120, 10, 200


def error(loss_N: np.ndarray, share_N: np.ndarray, draws: int, rng: np.random.Generator) -> float:
    """Root mean square error of the weighted mean of draws by these shares."""
    count = len(loss_N)
    places = rng.choice(count, (REPEATS, draws), p=share_N)
    weighted_N = loss_N / (count * share_N)
    told = weighted_N[places].mean(1)
    off = told - loss_N.mean()
    square = np.mean(off**2)
    return float(np.sqrt(square))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Both errors."""
    rng = np.random.default_rng([seed, 18])
    digits = drawn(seed)
    pool = Pool.measured(digits.features_ND, digits.loss_N)
    config = Config(centres=CENTRES, smoothness=0.03)
    share_N = sensitivities(pool, config, rng)
    even_N = np.full(len(pool), 1 / len(pool))
    left = LOSSES - pool.losses_asked
    method = error(digits.loss_N, share_N, left, rng)
    baseline = error(digits.loss_N, even_N, LOSSES, rng)
    return {"method": method, "baseline": baseline}
