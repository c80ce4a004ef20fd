"""Partial optimality in cubic correlation clustering: more is proved than by conditions on pairs alone.

Paper: Partial Optimality in Cubic Correlation Clustering.
Tried: 20 instances of eight elements in three planted groups, costs -1 inside and +1 across (triples: a half of that),
with normal noise of deviations from 0 to 1; share of pairs proved together or apart by all conditions, against that by
cuts and joins of pairs. Condition: what is proved agrees with some partition among all 4,140 that costs least, in every
instance. Against it: a share that is no higher, or a single proof that fails.
"""

from __future__ import annotations

import itertools

import numpy as np

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.density.clustering.correlation import Clustering, Config, correlation_clustering

SIZE, GROUPS, INSTANCES, NOISE = 8, 3, 20, 1.0
PAIRS = Config(conditions=("edge_cut", "edge_join"))

RIGHT = Comparison(quantity="right", baseline=1.0, lower_is_better=False, at_least=-0.001)
CLAIM = Claim("Conditions on triples and sets prove more than conditions on pairs.", "share of pairs that are settled",
              quantity="settled", lower_is_better=False, provided=(RIGHT,))


def partitions() -> np.ndarray:
    """All partitions of the elements, as labels (M, N)."""
    found = [[0]]
    for _ in range(1, SIZE):
        longer = []
        for labels in found:
            new = max(labels) + 1
            longer += [[*labels, k] for k in range(new + 1)]
        found = longer
    return np.array(found)


def draw(rng: np.random.Generator, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Costs of pairs and of triples."""
    label = rng.integers(0, GROUPS, SIZE)
    costs = []
    for width, scale in ((2, 1.0), (3, 0.5)):
        cost = np.zeros((SIZE,) * width)
        for chosen in itertools.combinations(range(SIZE), width):
            noise = sigma * rng.normal()
            members = list(chosen)
            value = planted(label[members]) + noise
            for order in itertools.permutations(chosen):
                cost[order] = scale * value
        costs.append(cost)
    pair, triple = costs
    return pair, triple


def planted(labels: np.ndarray) -> float:
    """-1 within a group, 1 across."""
    lowest, highest = labels.min(), labels.max()
    return -1.0 if lowest == highest else 1.0


def cheapest(pair: np.ndarray, triple: np.ndarray, every: np.ndarray) -> np.ndarray:
    """All partitions (M, N) of least cost."""
    same = every[:, :, None] == every[:, None]
    of_pairs = np.einsum("ij,mij->m", pair, same) / 2
    of_triples = np.einsum("ijk,mij,mik->m", triple, same, same, optimize=True) / 6
    value = of_pairs + of_triples
    above = value - value.min()
    return every[above < 1e-9]


def agrees(found: Clustering, labels: np.ndarray) -> bool:
    """Whether a partition keeps all that is proved."""
    same = alike(labels)
    together = alike(found.groups_N)
    joined = same[together]
    parted = same[found.apart_NN]
    three_M3 = np.sort(labels[found.split_M3], axis=1)
    whole = three_M3[:, 0] == three_M3[:, 2]
    wrong = parted.any() or whole.any()
    return bool(joined.all()) and not wrong


def alike(labels: np.ndarray) -> np.ndarray:
    """Which elements (N, N) have one label."""
    return labels[:, None] == labels


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Means over the instances of what is settled, and the share of instances proved rightly."""
    rng = np.random.default_rng(seed)
    every = partitions()
    ours, theirs, right = [], [], []
    for sigma in np.linspace(0, NOISE, INSTANCES):
        pair, triple = draw(rng, sigma)
        found = correlation_clustering(pair, triple)
        plain = correlation_clustering(pair, triple, PAIRS)
        best = cheapest(pair, triple, every)
        kept = any(agrees(found, labels) for labels in best)
        ours.append(found.settled)
        theirs.append(plain.settled)
        right.append(kept)
    return {"method": {"settled": mean(ours), "right": mean(right)}, "baseline": {"settled": mean(theirs)}}
