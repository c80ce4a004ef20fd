"""A Gaussian mixture of weighted rows with missing values: exact EM over what was observed."""

import numpy as np

from mixwell.density import GaussianMixture

draw = np.random.default_rng(3)
means = np.array([[0.0, 0.0, 0.0], [4.0, 4.0, 0.0], [0.0, 4.0, 4.0]])
labels = draw.integers(3, size=900)
rows = means[labels] + draw.normal(size=(900, 3))
rows[draw.random(rows.shape) < 0.15] = np.nan  # fifteen values in a hundred are missing
weight = draw.uniform(0.5, 2.0, size=900)  # how many rows of the population each row stands for

model = GaussianMixture(3, tol=1e-6, random_state=0).fit(rows, sample_weight=weight)

order = np.argsort(model.means_ @ [1.0, 2.0, 4.0])
print(f"converged after {model.n_iter_} iterations: {model.converged_}")
for k in order:
    print(f"weight {model.weights_[k]:.2f}  mean {np.round(model.means_[k], 2)}")
few_gaps = rows[np.isnan(rows).sum(1) < 2]
print("share of sure rows:", round(float((model.predict_proba(few_gaps).max(1) > 0.9).mean()), 2))
