"""Partitive partitioning: the number of clusters is found, and the same clusters in every run.

Paper: Probabilistic Partitive Partitioning (PPP).
Tried: eight sets of 300 rows in 3 to 6 Gaussian blobs of 2 to 4 dimensions a seed, iris, and wine (standardised); three
runs of each on rows in a new order, against k-means++ of ten starts a number from 2 to 9 and the best silhouette; share
of right numbers of clusters. Adjusted Rand index between runs, and within-cluster scatter over that of one k-means++
run of the same number.
Against it: silhouettes are right as often, runs differ (an index more than 0.001 below 1), or the clusters are more
than 1 % wider than those of k-means++.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from mixwell.claims._series import mean, means
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.core.registry import find

BLOBS, ROWS, RUNS, NUMBERS = 8, 300, 3, range(2, 10)
SAME = Comparison(quantity="agreement", baseline=1.0, lower_is_better=False, at_least=-0.001)
COMPACT = Comparison(quantity="scatter", baseline=1.0, at_least=-0.01)

CLAIM = Claim("Partitive partitioning finds compact clusters and their number, the same in every run.",
              "share of right numbers of clusters", quantity="right", lower_is_better=False, provided=(SAME, COMPACT))
Array = np.ndarray


def blobs(rng: np.random.Generator) -> tuple[Array, int]:
    """Rows of three to six blobs, and their number."""
    k = int(rng.integers(3, 7))
    columns = int(rng.integers(2, 5))
    centres = rng.uniform(-10, 10, (k, columns))
    label = rng.integers(k, size=ROWS)
    noise = rng.normal(size=(ROWS, columns))
    return centres[label] + noise, k


def problems(rng: np.random.Generator) -> list[tuple[Array, int]]:
    """Rows and the true number of clusters."""
    from sklearn.datasets import load_iris, load_wine

    drawn = [blobs(rng) for _ in range(BLOBS)]
    iris = load_iris().data
    wine = load_wine().data
    standardised = (wine - wine.mean(0)) / wine.std(0)
    return [*drawn, (iris, 3), (standardised, 3)]


def by_silhouette(x: Array, seed: int) -> Array:
    """Labels of the k-means++ run of best silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    runs = [KMeans(k, n_init=10, random_state=seed).fit_predict(x) for k in NUMBERS]
    return max(runs, key=lambda labels: float(silhouette_score(x, labels)))


def agreement(runs: list[Array]) -> float:
    """Mean adjusted Rand index between runs."""
    from sklearn.metrics import adjusted_rand_score

    pairs = combinations(runs, 2)
    return mean(adjusted_rand_score(a, b) for a, b in pairs)


def right(runs: list[Array], true: int) -> float:
    """Share of runs with the true number of clusters."""
    numbers = [len(set(labels)) for labels in runs]
    return numbers.count(true) / len(numbers)


def scatter_ratio(model: Any, x: Array, run: int) -> float:
    """Within-cluster scatter over that of k-means++ of the same number."""
    from sklearn.cluster import KMeans

    gap = x - model.cluster_centers_[model.labels_]
    rival = KMeans(model.n_clusters_, n_init=1, random_state=run).fit(x)
    return (gap**2).sum() / rival.inertia_


def repeated(x: Array, true: int, seed: int) -> dict[str, float]:
    """Of the runs on one data set, by the name of the series."""
    method = find("density.selection.partitive").load()
    ours, theirs, ratios = [], [], []
    for run in range(RUNS):
        rng = np.random.default_rng([seed, run])
        order = rng.permutation(len(x))
        back = np.argsort(order)
        shuffled = x[order]
        model = method().fit(shuffled)
        rival = by_silhouette(shuffled, RUNS * seed + run)
        ours.append(model.labels_[back])
        theirs.append(rival[back])
        ratio = scatter_ratio(model, shuffled, run)
        ratios.append(ratio)
    return {"method right": right(ours, true), "baseline right": right(theirs, true),
            "method agreement": agreement(ours), "baseline agreement": agreement(theirs),
            "method scatter": mean(ratios)}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Shares of right numbers, agreement of runs, and scatter over k-means++'s, mean of the data sets."""
    every = problems(np.random.default_rng(seed))
    return means([repeated(x, true, seed) for x, true in every])
