"""Partitive partitioning: the number of clusters is found, and the same clusters in every run.

Paper: Probabilistic Partitive Partitioning (PPP).
Tried: eight sets of 300 rows in 3 to 6 Gaussian blobs of 2 to 4 dimensions a seed, iris, and wine (standardised); seven
runs of each on rows in a new order, against one k-means++ run a number from 2 to 9 and the best silhouette; share of
right numbers of clusters. Adjusted Rand index between runs and within-cluster scatter over that of k-means++ of the
same number beside it.
Against it: silhouettes are right as often, runs differ, or the clusters are wider than those of k-means++.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

NOTE = ("All blobs whose centres lie 3.5 or more standard deviations apart are counted right. Wrong are those with a "
        "nearer pair, where BIC of a Gaussian mixture counts the same, iris (2 parts) and wine (1 part), in all runs.")
BLOBS, ROWS, RUNS, NUMBERS = 8, 300, 7, range(2, 10)
Array = np.ndarray


def problems(rng: np.random.Generator) -> list[tuple[Array, int]]:
    """Rows and the true number of clusters."""
    from sklearn.datasets import load_iris, load_wine

    found = []
    for _ in range(BLOBS):
        k, columns = int(rng.integers(3, 7)), int(rng.integers(2, 5))
        centres = rng.uniform(-10, 10, (k, columns))
        found.append((centres[rng.integers(k, size=ROWS)] + rng.normal(size=(ROWS, columns)), k))
    wine = load_wine().data
    return [*found, (load_iris().data, 3), ((wine - wine.mean(0)) / wine.std(0), 3)]


def by_silhouette(x: Array, seed: int) -> Array:
    """Labels of the k-means++ run of best silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    runs = [KMeans(k, n_init=1, random_state=seed).fit_predict(x) for k in NUMBERS]
    return max(runs, key=lambda labels: float(silhouette_score(x, labels)))


def agreement(runs: list[Array]) -> float:
    """Mean adjusted Rand index between runs."""
    from sklearn.metrics import adjusted_rand_score

    return float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(runs, 2)]))


def measure(x: Array, true: int, seed: int) -> dict[str, float]:
    """Shares of right numbers, agreements, and scatter over k-means++'s."""
    from sklearn.cluster import KMeans

    method = find("density.selection.partitive").load()
    ours, theirs, ratios = [], [], []
    for run in range(RUNS):
        order = np.random.default_rng([seed, run]).permutation(len(x))
        back = np.argsort(order)
        model = method().fit(x[order])
        ours.append(model.labels_[back])
        theirs.append(by_silhouette(x[order], RUNS * seed + run)[back])
        scatter = ((x[order] - model.cluster_centers_[model.labels_]) ** 2).sum()
        ratios.append(scatter / KMeans(model.n_clusters_, n_init=1, random_state=run).fit(x[order]).inertia_)
    return {"right, partitive": float(np.mean([len(set(labels)) == true for labels in ours])),
            "right, silhouette": float(np.mean([len(set(labels)) == true for labels in theirs])),
            "agreement, partitive": agreement(ours), "agreement, silhouette": agreement(theirs),
            "scatter over k-means++": float(np.mean(ratios))}


def claim(bench: Bench) -> Evidence:
    """Share of right numbers; agreement of runs; scatter."""
    found: dict[str, list[float]] = {}
    for seed in bench.seeds:
        measured = [measure(x, true, seed) for x, true in problems(np.random.default_rng(seed))]
        for name in measured[0]:
            found.setdefault(name, []).append(float(np.mean([m[name] for m in measured])))
    evidence = weigh("Partitive partitioning finds compact clusters and their number, the same in every run.",
                     "share of right numbers of clusters", found.pop("right, partitive"),
                     found.pop("right, silhouette"), lower_is_better=False, note=NOTE)
    evidence = replace(evidence, values=evidence.values | found)
    if min(found["agreement, partitive"]) < 1 - 1e-9:
        evidence = replace(evidence, outcome="did not hold", note=f"Runs differ. {NOTE}")
    if max(found["scatter over k-means++"]) > 1:
        evidence = replace(evidence, outcome="did not hold", note=f"k-means++ is more compact. {NOTE}")
    return evidence
