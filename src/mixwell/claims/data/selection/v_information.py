"""Hard examples of every cluster teach to predict what is hidden better than as many drawn evenly.

Paper: Maximizing V-information for Pre-training Superior Foundation Models.
Tried: digits of which a tenth are noise; the lower half of an image is told from its upper half by ridge regression; a
first one from 100 examples gives the losses, a tenth of 1,297 is kept in ten clusters; mean square error on 500 fresh
clean digits of a regression fitted to those kept. Baseline: as many drawn evenly. Beside: the hardest of all, without
clusters. Against it: an error that is no lower.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.data._learning import digits
from mixwell.data.pool import Pool
from mixwell.data.selection.v_information import Config, v_information

CLAIM = Claim("Hard examples of every cluster teach more than even draws.", "mean square error")
SHARE, FIRST, HIDDEN = 0.1, 100, 32


def fitted(images: np.ndarray) -> np.ndarray:
    """The map from the upper half, and a constant, to the lower."""
    seen = upper(images)
    gram = seen.T @ seen
    penalty = np.eye(len(gram))
    return np.linalg.solve(gram + penalty, seen.T @ images[:, HIDDEN:])


def upper(images: np.ndarray) -> np.ndarray:
    """The upper half and a constant."""
    ones = np.ones((len(images), 1))
    return np.hstack([images[:, :HIDDEN], ones])


def errors(weights: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Mean square error of each image: [N]."""
    off = upper(images) @ weights - images[:, HIDDEN:]
    return (off**2).mean(1)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Errors on fresh digits."""
    rng = np.random.default_rng([seed, 45])
    learned, test = digits(seed)
    images = learned.x.numpy().copy()
    noisy = rng.random(len(images)) < 0.1
    images[noisy] = rng.random(images[noisy].shape)
    first = rng.choice(len(images), FIRST, replace=False)
    weights = fitted(images[first])
    pool = Pool.measured(images, errors(weights, images))
    kept = {}
    for side, groups in (("method", 10), ("hardest", 1)):
        config = Config(share=SHARE, groups=groups)
        chosen = v_information(pool, config, rng)
        kept[side] = chosen.indices_S
    count = len(kept["method"])
    kept["baseline"] = rng.choice(len(images), count, replace=False)
    fresh = test.x.numpy()
    return {side: float(errors(fitted(images[places]), fresh).mean()) for side, places in kept.items()}
