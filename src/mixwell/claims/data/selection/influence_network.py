"""A small network that saw a twentieth of the pairs of influence chooses examples as well as all pairs do.

Paper: Data Valuation using Neural Networks for Efficient Instruction Fine-Tuning.
Tried: 200 digits in twenty principal components, influence the product of the gradients of a softmax regression; a
tenth is kept, by how much of the pool's exact influence it covers. Method: a network that learned from pairs of a fifth
of the examples (a twenty-fifth of the pairs). Baseline: all pairs. Beside: a tenth drawn evenly. Against it: a coverage
that is lower by a tenth, or no higher than the even draw's.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.data.pool import Pool
from mixwell.data.selection.influence_network import Config, covering, influence_network

CLAIM = Claim("Few pairs tell whom to keep.", "share of the influence covered", lower_is_better=False, at_least=-0.1,
              relative=True, provided=(Comparison(method="method", baseline="even", lower_is_better=False),))
COUNT, KEPT = 200, 20


def influence(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, 20] and the products of all gradients, from 0 to 1: [N, N]."""
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng([seed, 43])
    images, classes = load_digits(return_X_y=True)
    pca = PCA(20, whiten=True, random_state=0)
    features = pca.fit_transform(images)
    some = rng.choice(len(images), COUNT, replace=False)
    x, y = features[some], classes[some]
    fitted = LogisticRegression(C=0.01, max_iter=200).fit(x, y)
    off = fitted.predict_proba(x) - np.eye(10)[y]
    product = (x @ x.T) * (off @ off.T)
    low, high = product.min(), product.max()
    return x, (product - low) / (high - low)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Coverage of the network's choice, of all pairs' and of an even draw."""
    rng = np.random.default_rng([seed, 44])
    x, exact = influence(seed)
    pool = Pool(x, influence=lambda of, on: exact[np.ix_(of, on)])
    config = Config(share=KEPT / COUNT, exact=0.2, epochs=60, lr=3e-3)
    chosen = influence_network(pool, config, rng)
    kept = {"method": chosen.indices_S, "baseline": covering(exact, KEPT),
            "even": rng.choice(COUNT, KEPT, replace=False)}
    return {side: float(exact[places].max(0).mean()) for side, places in kept.items()}
