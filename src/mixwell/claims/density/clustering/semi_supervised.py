"""Category discovery: a semi-supervised mixture with splits and merges beats k-means that is told the class number.

Paper: Learning Semi-supervised Gaussian Mixture Models for Generalized Category Discovery.
Tried: scikit-learn's digits in 12 principal components, half of the classes 0 to 5 labelled; accuracy on unlabelled
digits under the best matching, from six components, against k-means with ten. Against it: an accuracy that is no
higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims._judging import matched_accuracy
from mixwell.claims._series import series
from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.density.clustering.semi_supervised import SemiSupervisedMixture


def measure(seed: int) -> tuple[float, float, int]:
    """Accuracies on unlabelled digits of both, and the components found."""
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    table, digit = load_digits(return_X_y=True)
    x = PCA(12, random_state=0).fit_transform(table)
    half = np.random.default_rng(seed).random(len(x)) < 0.5
    hidden = ~(half & (digit < 6))
    labels = np.where(hidden, -1, digit)
    model = SemiSupervisedMixture(n_components=6, random_state=seed).fit(x, labels)
    rival = KMeans(10, n_init=10, random_state=seed).fit_predict(x)
    ours = matched_accuracy(digit[hidden], model.labels_[hidden])
    theirs = matched_accuracy(digit[hidden], rival[hidden])
    return ours, theirs, model.n_components_


def claim(bench: Bench) -> Evidence:
    """Accuracy of both on unlabelled digits."""
    ours, theirs, sizes = series(bench, measure)
    return weigh("A semi-supervised split-and-merge mixture finds categories without their number.",
                 "accuracy on unlabelled digits", ours, theirs, lower_is_better=False,
                 note=f"Components found: {', '.join(map(str, sizes))} (10 digits).")
