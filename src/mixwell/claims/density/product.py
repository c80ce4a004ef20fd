"""Mixture over columns of different kinds: groups seen in numbers, counts and categories are found in their own units.

Paper: Mixture Model Clustering using the MULTIMIX Program.
Tried: 400 rows of three groups (50, 30 and 20 %) in two numbers, two counts and three categories; adjusted Rand index
with the groups, mean of five data sets, five starts each, against a Gaussian mixture with diagonal covariances
(reg_covar 0.05) on standardised numbers, square roots of counts and one-hot codes. Against it: an index that is no
higher. Beside it: k-means on the same codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._judging import beside
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.mixtures.categorical import CategoricalMixture
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.mixtures.poisson import PoissonMixture
from mixwell.density.mixtures.product import Block, ProductMixture

ROWS, SHARES, SETS, STARTS, CATEGORIES = 400, (0.5, 0.3, 0.2), 5, 5, 4


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, counts and categories (ROWS, 7), and groups (ROWS,)."""
    label = rng.choice(len(SHARES), ROWS, p=SHARES)
    centres, rates = rng.normal(size=(len(SHARES), 2)), rng.gamma(1.5, 2.0, (len(SHARES), 2))
    numbers, counts = centres[label] + rng.normal(size=(ROWS, 2)), rng.poisson(rates[label])
    edges = rng.dirichlet(np.ones(CATEGORIES), (3, len(SHARES))).cumsum(-1)
    codes = (rng.random((ROWS, 3, 1)) > edges[np.arange(3), label[:, None], :-1]).sum(-1)
    return np.hstack([numbers, counts, codes]).astype(float), label


def claim(bench: Bench) -> Evidence:
    """Agreement with the groups, of the product and of what takes all columns for numbers."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    blocks = [Block("numeric", GaussianMixture(), (0, 1)), Block("count", PoissonMixture(), (2, 3)),
              Block("category", CategoricalMixture(alpha=0.5), (4, 5, 6), (), (CATEGORIES,) * 3)]
    found: dict[str, list[float]] = {"product": [], "gaussian": [], "k_means": []}
    for seed in bench.seeds:
        rng, scores = np.random.default_rng(seed), []
        for _ in range(SETS):
            x, label = draw(rng)
            codes = np.hstack([x[:, :2] / x[:, :2].std(0), np.sqrt(x[:, 2:4]),
                               *(np.eye(CATEGORIES)[column] for column in x[:, 4:].astype(int).T)])
            options: dict[str, Any] = {"n_init": STARTS, "random_state": seed}
            normal = GaussianMixture(len(SHARES), covariance_type="diag", reg_covar=0.05, max_iter=500, **options)
            scores.append([adjusted_rand_score(label, labels) for labels in (
                ProductMixture(len(SHARES), blocks=blocks, max_iter=500, **options).fit_predict(x),
                normal.fit_predict(codes), KMeans(len(SHARES), **options).fit_predict(codes))])
        for name, value in zip(found, np.mean(scores, 0)):
            found[name].append(float(value))
    evidence = weigh("Groups in mixed columns are found better in the columns' own kinds than as numbers alone.",
                     "adjusted Rand index", found["product"], found["gaussian"], lower_is_better=False)
    return beside(evidence, k_means=found["k_means"])
