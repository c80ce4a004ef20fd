"""Clusters on a Hamiltonian cycle: similar clusters stand beside each other, and outliers inside.

Paper: High-dimensional Clustering onto Hamiltonian Cycle.
Tried: 600 of scikit-learn's digits and 30 rows of uniform noise, soft assignments of ten clusters by the method; mean
distance, in pixels' units, between the means of clusters that are neighbours on the circle, in the cycle's order and in
the order in which k-means numbered them (as RadViz would, anchors at equal angles). Condition: noise is told by the
distance to the rim (area under the curve) no worse than in that order, by 0.02 at most. Beside it: the same area by the
entropy of the posterior of a Gaussian mixture with diagonal covariances. Against it: a distance that is no smaller.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.claims.density._data import quietly
from mixwell.density.clustering.hamiltonian_cycle import HamiltonianClustering, drawn

ROWS, NOISE, CLUSTERS = 600, 30, 10

CLAIM = Claim("The shortest cycle puts similar clusters beside each other.", "distance between neighbours' means",
              quantity="distance", provided=(no_worse("noise", 0.02, relative=False, lower_is_better=False),))


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, 64) between 0 and 16, and which are noise (N,)."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    images = load_digits().data
    chosen = rng.choice(len(images), ROWS, replace=False)
    noise = rng.uniform(0, 16, (NOISE, 64))
    x = np.vstack([images[chosen], noise])
    place = np.arange(len(x))
    return x, place >= ROWS


def beside(means: np.ndarray, order: np.ndarray) -> float:
    """Mean distance between the means of neighbours on the circle."""
    here = means[order]
    after = np.roll(here, -1, axis=0)
    gap = np.linalg.norm(here - after, axis=1)
    return float(gap.mean())


def seen(noise: np.ndarray, points: np.ndarray) -> float:
    """Area under the curve of noise told by the distance to the rim."""
    from sklearn.metrics import roc_auc_score

    inside = 1 - np.linalg.norm(points, axis=1)
    return float(roc_auc_score(noise, inside))


def by_entropy(x: np.ndarray, noise: np.ndarray, seed: int) -> float:
    """The same by the entropy of a Gaussian mixture's posterior."""
    from sklearn.metrics import roc_auc_score
    from sklearn.mixture import GaussianMixture

    with quietly():
        model = GaussianMixture(CLUSTERS, covariance_type="diag", reg_covar=1.0, random_state=seed).fit(x)
    resp = model.predict_proba(x)
    entropy = -(resp * np.log(np.maximum(resp, 1e-300))).sum(1)
    return float(roc_auc_score(noise, entropy))


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """The cycle, the clusters as they are numbered, and a mixture's entropy."""
    x, noise = draw(seed)
    model = HamiltonianClustering(n_clusters=CLUSTERS, random_state=seed)
    model.fit(x)
    resp = model.predict_proba(x)
    size = resp.sum(0)
    means = resp.T @ x / size[:, None]
    numbered = np.arange(CLUSTERS)
    plain = drawn(resp, even(), 1.0)
    ours, theirs, other = {}, {}, {}
    along = model.order_
    ours["distance"] = beside(means, along)
    theirs["distance"] = beside(means, numbered)
    ours["noise"] = seen(noise, model.embedding_)
    theirs["noise"] = seen(noise, plain)
    other["noise"] = by_entropy(x, noise, seed)
    return {"method": ours, "baseline": theirs, "mixture": other}


def even() -> np.ndarray:
    """Anchors (K, 2) at equal angles."""
    share = np.arange(CLUSTERS) / CLUSTERS
    angle = 2 * np.pi * share
    return np.stack([np.cos(angle), np.sin(angle)], 1)
