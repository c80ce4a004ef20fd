"""Category discovery: a semi-supervised mixture with splits and merges beats k-means that is told the class number.

Paper: Learning Semi-supervised Gaussian Mixture Models for Generalized Category Discovery.
Tried: scikit-learn's digits in 12 principal components, half of the classes 0 to 5 labelled; accuracy on unlabelled
digits under the best matching, from six components, against k-means with ten.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims._judging import matched_accuracy
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.clustering.semi_supervised import SemiSupervisedMixture


def claim(bench: Bench) -> Evidence:
    """Accuracy of both on unlabelled digits."""
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    digits = load_digits()
    x = PCA(12, random_state=0).fit_transform(digits.data)
    ours, theirs, sizes = [], [], []
    for seed in bench.seeds:
        seen = (np.random.default_rng(seed).random(len(x)) < 0.5) & (digits.target < 6)
        model = SemiSupervisedMixture(n_components=6, random_state=seed).fit(x, np.where(seen, digits.target, -1))
        ours.append(matched_accuracy(digits.target[~seen], model.labels_[~seen]))
        rival = KMeans(10, n_init=10, random_state=seed).fit_predict(x)
        theirs.append(matched_accuracy(digits.target[~seen], rival[~seen]))
        sizes.append(model.n_components_)
    return weigh("A semi-supervised split-and-merge mixture finds categories without their number.",
                 "accuracy on unlabelled digits", ours, theirs, lower_is_better=False,
                 note=f"Components found: {', '.join(map(str, sizes))} (10 digits).")
