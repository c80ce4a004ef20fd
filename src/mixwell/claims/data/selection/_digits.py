"""Handwritten digits and a softmax regression fitted to a few of them: losses and features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEATURES = 20  # principal components that selection sees
FITTED = 400


@dataclass(frozen=True)
class Digits:
    """Components [N, 20] and what the regression makes of every image."""

    features_ND: np.ndarray
    loss_N: np.ndarray


def drawn(seed: int) -> Digits:
    """The regression of the 400 images that a seed draws."""
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng([seed, 17])
    images, classes = load_digits(return_X_y=True)
    count = len(images)
    pca = PCA(FEATURES, whiten=True, random_state=0)
    features_ND = pca.fit_transform(images)
    some = rng.choice(count, FITTED, replace=False)
    regression = LogisticRegression(C=0.01, max_iter=300)
    fitted = regression.fit(features_ND[some], classes[some])
    share_NC = fitted.predict_proba(features_ND)
    place_N = np.arange(count)
    loss_N = -np.log(share_NC[place_N, classes])
    return Digits(features_ND, loss_N)
