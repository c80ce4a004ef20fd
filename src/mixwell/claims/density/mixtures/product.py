"""Mixture over columns of different kinds: groups seen in numbers, counts and categories are found in their own units.

Paper: Mixture Model Clustering using the MULTIMIX Program.
Tried: 400 rows of three groups (50, 30 and 20 %) in two numbers, two counts and three categories; adjusted Rand index
with the groups, mean of five data sets, five starts each, against the better, on each data set, of k-means and of a
Gaussian mixture with diagonal covariances (reg_covar 0.05) on standardised numbers, square roots of counts and one-hot
codes. Against it: an index that is no higher.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._series import means
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import rand_index
from mixwell.density.mixtures.categorical import CategoricalMixture
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.mixtures.poisson import PoissonMixture
from mixwell.density.mixtures.product import Block, ProductMixture

ROWS, SHARES, SETS, STARTS, CATEGORIES = 400, (0.5, 0.3, 0.2), 5, 5, 4

CLAIM = Claim("Groups in mixed columns are found better in the columns' own kinds than as numbers alone.",
              "adjusted Rand index", lower_is_better=False)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, counts and categories (ROWS, 7), and groups (ROWS,)."""
    groups = len(SHARES)
    label = rng.choice(groups, ROWS, p=SHARES)
    centres = rng.normal(size=(groups, 2))
    rates = rng.gamma(1.5, 2.0, (groups, 2))
    numbers = centres[label] + rng.normal(size=(ROWS, 2))
    counts = rng.poisson(rates[label])
    shares = rng.dirichlet(np.ones(CATEGORIES), (3, groups))
    edges = shares.cumsum(-1)[np.arange(3), label[:, None], :-1]
    passed = rng.random((ROWS, 3, 1)) > edges
    x = np.hstack([numbers, counts, passed.sum(-1)])
    return x.astype(float), label


def blocks() -> list[Block]:
    """The columns by their kinds."""
    numbers = Block("numeric", GaussianMixture(), (0, 1))
    counts = Block("count", PoissonMixture(), (2, 3))
    sizes = (CATEGORIES,) * 3
    categories = Block("category", CategoricalMixture(alpha=0.5), (4, 5, 6), (), sizes)
    return [numbers, counts, categories]


def as_numbers(x: np.ndarray) -> np.ndarray:
    """Standardised numbers, roots of counts and one-hot codes."""
    numbers, counts, categories = np.split(x, [2, 4], axis=1)
    eye = np.eye(CATEGORIES)
    codes = [eye[column] for column in categories.astype(int).T]
    scaled = numbers / numbers.std(0)
    roots = np.sqrt(counts)
    return np.hstack([scaled, roots, *codes])


def agreements(x: np.ndarray, label: np.ndarray, seed: int) -> dict[str, float]:
    """With the groups, of the product, of a Gaussian mixture and of k-means."""
    from sklearn.cluster import KMeans

    groups, codes = len(SHARES), as_numbers(x)
    options: dict[str, Any] = {"n_init": STARTS, "random_state": seed}
    product = ProductMixture(groups, blocks=blocks(), max_iter=500, **options)
    normal = GaussianMixture(groups, covariance_type="diag", reg_covar=0.05, max_iter=500, **options)
    k_means = KMeans(groups, **options)
    rivals = {"Gaussian": rand_index(label, normal, codes), "k-means": rand_index(label, k_means, codes)}
    return {"method": rand_index(label, product, x), "baseline": max(rivals.values()), **rivals}


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Means of the data sets."""
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(SETS):
        x, label = draw(rng)
        scores.append(agreements(x, label, seed))
    return means(scores)
