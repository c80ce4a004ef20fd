"""Clustering and topics together: the joint model clusters better than topics first and clusters afterwards.

Paper: Integrating Document Clustering and Topic Modeling.
Tried: 200 documents of 60 words drawn from the model (four clusters with three topics each, three global topics, a
vocabulary of 200, half of the words global); normalised mutual information of the clusters, against k-means on the
topic proportions of scikit-learn's latent Dirichlet allocation with as many topics (15). Against it: an information
that is no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.clustering.topics import ClusterTopics

WORDS = 200


def corpus(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (200, 200) and clusters (200,)."""
    rng = np.random.default_rng(seed)
    local = rng.dirichlet(np.full(WORDS, 0.1), (4, 3))
    shared = rng.dirichlet(np.full(WORDS, 0.1), 3)
    labels = rng.integers(0, 4, 200)
    rows = []
    for topics in local[labels]:
        own = rng.dirichlet(np.ones(3)) @ topics
        common = rng.dirichlet(np.ones(3)) @ shared
        share = rng.beta(5, 5)
        words = share * own + (1 - share) * common
        rows.append(rng.multinomial(60, words))
    return np.stack(rows).astype(float), labels


def measure(seed: int) -> tuple[float, float]:
    """Mutual information of both ways."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import LatentDirichletAllocation
    from sklearn.metrics import normalized_mutual_info_score

    x, labels = corpus(seed)
    model = ClusterTopics(n_clusters=4, n_local=3, n_global=3, n_init=3, random_state=seed).fit(x)
    shares = LatentDirichletAllocation(15, max_iter=30, random_state=seed).fit_transform(x)
    found = KMeans(4, n_init=10, random_state=seed).fit_predict(shares)
    ours = normalized_mutual_info_score(labels, model.labels_)
    theirs = normalized_mutual_info_score(labels, found)
    return float(ours), float(theirs)


def claim(bench: Bench) -> Evidence:
    """Mutual information of both ways."""
    ours, theirs = series(bench, measure)
    return weigh("Joint clustering and topics beat topics, then clusters.", "normalised mutual information",
                 ours, theirs, lower_is_better=False)
