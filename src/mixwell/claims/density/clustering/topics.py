"""Clustering and topics together: the joint model clusters better than topics first and clusters afterwards.

Paper: Integrating Document Clustering and Topic Modeling.
Tried: 200 documents of 60 words drawn from the model (four clusters with three topics each, three global topics, a
vocabulary of 200, half of the words global); normalised mutual information of the clusters, against k-means on the
topic proportions of scikit-learn's latent Dirichlet allocation with as many topics (15), the best of three starts by
its perplexity. Against it: an information that is no higher than that, or than of k-means on square roots of word
shares, which the joint model starts from.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.density.clustering.topics import ClusterTopics

WORDS = 200

CLAIM = Claim("Joint clustering and topics beat topics, then clusters.", "normalised mutual information",
              lower_is_better=False, provided=(Comparison(baseline="k-means on words", lower_is_better=False),))


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


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Mutual information of the three ways."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import LatentDirichletAllocation
    from sklearn.metrics import normalized_mutual_info_score

    x, labels = corpus(seed)
    model = ClusterTopics(n_clusters=4, n_local=3, n_global=3, n_init=3, random_state=seed).fit(x)
    topics = [LatentDirichletAllocation(15, max_iter=30, random_state=3 * seed + start).fit(x) for start in range(3)]
    fitting = min(topics, key=lambda model: float(model.perplexity(x)))
    k_means = KMeans(4, n_init=10, random_state=seed)
    found = {"method": model.labels_, "baseline": k_means.fit_predict(fitting.transform(x)),
             "k-means on words": k_means.fit_predict(np.sqrt(x / x.sum(1, keepdims=True)))}
    return {name: float(normalized_mutual_info_score(labels, each)) for name, each in found.items()}
