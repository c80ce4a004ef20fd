"""Partitive partitioning: the number of clusters is found, and the same clusters in every run.

Paper: Probabilistic Partitive Partitioning (PPP).
Tried: eight sets of 300 rows in 3 to 6 Gaussian blobs of 2 to 4 dimensions a seed, iris, and wine (standardised); seven
runs of each on rows in a new order, against one k-means++ run a number from 2 to 9 and the best silhouette; share of
right numbers of clusters. Adjusted Rand index between runs and within-cluster scatter over that of k-means++ of the
same number beside it.
Against it: silhouettes are right as often, runs differ, or the clusters are wider than those of k-means++.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from mixwell.claims._judging import provided
from mixwell.claims._series import by_name, by_seed, mean, means
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

NOTE = ("All blobs whose centres lie 3.5 or more standard deviations apart are counted right. Wrong are those with a "
        "nearer pair, where BIC of a Gaussian mixture counts the same, iris (2 parts) and wine (1 part), in all runs.")
BLOBS, ROWS, RUNS, NUMBERS = 8, 300, 7, range(2, 10)
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

    runs = [KMeans(k, n_init=1, random_state=seed).fit_predict(x) for k in NUMBERS]
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


def measure(x: Array, true: int, seed: int) -> dict[str, float]:
    """Shares of right numbers, agreements, and scatter over k-means++'s."""
    method = find("density.selection.partitive").load()
    ours, theirs, ratios = [], [], []
    for run in range(RUNS):
        order = np.random.default_rng([seed, run]).permutation(len(x))
        back = np.argsort(order)
        shuffled = x[order]
        model = method().fit(shuffled)
        rival = by_silhouette(shuffled, RUNS * seed + run)
        ours.append(model.labels_[back])
        theirs.append(rival[back])
        ratios.append(scatter_ratio(model, shuffled, run))
    return {"right, partitive": right(ours, true), "right, silhouette": right(theirs, true),
            "agreement, partitive": agreement(ours), "agreement, silhouette": agreement(theirs),
            "scatter over k-means++": mean(ratios)}


def over_problems(seed: int) -> dict[str, float]:
    """Means of the data sets."""
    every = problems(np.random.default_rng(seed))
    return means([measure(x, true, seed) for x, true in every])


def claim(bench: Bench) -> Evidence:
    """Share of right numbers; agreement of runs; scatter."""
    found = by_name(by_seed(bench, over_problems))
    ours = found.pop("right, partitive")
    theirs = found.pop("right, silhouette")
    evidence = weigh("Partitive partitioning finds compact clusters and their number, the same in every run.",
                     "share of right numbers of clusters", ours, theirs, lower_is_better=False, note=NOTE)
    agreements, ratios = found["agreement, partitive"], found["scatter over k-means++"]
    same = min(agreements) >= 1 - 1e-9
    compact = max(ratios) <= 1
    why_not = "Runs differ." if compact else "k-means++ is more compact."
    return provided(evidence, same and compact, why_not, **found)
