"""Manifold linearising and clustering: curves that cross fall apart more truly than by clusters of their coordinates.

Paper: Unsupervised Manifold Linearizing and Clustering.
Tried: three closed curves of two frequencies each in twenty dimensions, which meet at a point, 80 rows of each, noise
0.02; share of rows in the right cluster under the best matching. The rival is spectral clustering of the graph of
nearest neighbours. Temperature and noise of the one, number of neighbours of the other are tuned alike. Condition:
better than k-means (ten starts), too. Against it: a share that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims._judging import matched_accuracy
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, Side
from mixwell.claims.density._data import quietly
from mixwell.density.clustering.manifold import ManifoldClustering

CURVES, ROWS, COLUMNS = 3, 80, 20


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, 20) and their curves (N,)."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(CURVES):
        once = rng.uniform(0, 2 * np.pi, ROWS)
        angle = np.stack([once, 2 * once], 1)
        away = np.cos(angle) - 1  # all curves pass zero
        waves = np.hstack([away, np.sin(angle)])
        root = rng.normal(size=(4, COLUMNS))
        turned = root / np.sqrt(COLUMNS)
        rows.append(waves @ turned)
    clean = np.vstack(rows)
    noise = rng.normal(size=clean.shape)
    label = np.repeat(np.arange(CURVES), ROWS)
    return clean + 0.02 * noise, label


def by_rates(bench: Bench, seed: int, *, eta: float, jitter: float) -> float:
    """Share of rows that manifold clustering puts right."""
    x, label = draw(seed)
    model = ManifoldClustering(n_clusters=CURVES, eta=eta, jitter=jitter, random_state=seed).fit(x)
    return matched_accuracy(label, model.labels_)


def by_neighbours(bench: Bench, seed: int, *, neighbours: int) -> float:
    """Share of rows that spectral clustering puts right."""
    from sklearn.cluster import SpectralClustering

    x, label = draw(seed)
    model = SpectralClustering(CURVES, affinity="nearest_neighbors", n_neighbors=neighbours, random_state=seed)
    with quietly():
        found = model.fit_predict(x)
    return matched_accuracy(label, found)


def by_means(bench: Bench, seed: int) -> float:
    """Share of rows that k-means puts right."""
    from sklearn.cluster import KMeans

    x, label = draw(seed)
    found = KMeans(CURVES, n_init=10, random_state=seed).fit_predict(x)
    return matched_accuracy(label, found)


MEANS = Comparison(baseline="k-means", lower_is_better=False)
CLAIM = Claim("Coding rates and doubly stochastic memberships tell crossing manifolds apart.",
              "share of rows clustered rightly", lower_is_better=False, provided=(MEANS,),
              sides={"method": Side(by_rates, {}, {"eta": (0.2, 0.3, 0.5), "jitter": (0.1, 0.3)}),
                     "baseline": Side(by_neighbours, {}, {"neighbours": (3, 5, 8, 12, 20, 30)}),
                     "k-means": Side(by_means)})
