"""ELBO selection: the largest bound finds the rank of a PCA and the K of a mixture as rows grow.

Paper: Consistency of ELBO maximization for model selection.
Tried: probabilistic PCA of rank 3 in ten dimensions, and mixtures of three overlapping Gaussians in the plane, 12 data
sets of each a seed; share of wrong choices at the larger number of rows against AIC's on the same data, and BIC's.
Under noise with Student's t of 4 degrees, nats a row that the chosen rank loses to the best rank on fresh rows.
Against it: AIC is wrong as rarely, BIC more rarely by 0.02, or the share of wrong choices does not fall with the rows.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison, no_worse
from mixwell.claims.density._data import quietly
from mixwell.core.registry import find

Array = np.ndarray
SETS, TRUE, COLUMNS = 12, 3, 10
PCA_ROWS, MIXTURE_ROWS = (40, 400), (60, 600)
RANKS, NUMBERS = range(8), range(1, 7)
CENTRES = np.array([[-2.5, 0.0], [0.0, 2.5], [2.5, 0.0]])
SCALES = np.array([2.0, 1.5, 1.2])  # of the three directions
PRIOR: dict[str, Any] = {"weight_concentration_prior_type": "dirichlet_distribution", "weight_concentration_prior": 1.0}

CLAIM = Claim("The largest ELBO finds the rank of a PCA and the number of components of a mixture.",
              "share of wrong choices", method="ELBO, many", baseline="AIC, many",
              provided=(Comparison(method="ELBO, many", baseline="ELBO, few"),
                        no_worse(margin=0.02, relative=False, method="ELBO, many", baseline="BIC, many")))


def principal(rows: int, rng: np.random.Generator, t_noise: bool = False) -> tuple[Array, Array]:
    """Rows around a subspace of three dimensions, and 4000 fresh ones."""
    square = rng.normal(size=(COLUMNS, TRUE))
    turn, _ = np.linalg.qr(square)
    axes = turn * SCALES
    shape = (rows + 4000, COLUMNS)
    noise = rng.standard_t(4, shape) / np.sqrt(2) if t_noise else rng.normal(size=shape)
    scores = rng.normal(size=(len(noise), TRUE))
    x = scores @ axes.T + noise
    return x[:rows], x[rows:]


def by_likelihood(x: Array) -> dict[str, int]:
    """Ranks that AIC and BIC choose, from the closed form of the maximum likelihood."""
    N, D = x.shape
    covariance = np.cov(x.T, bias=True)
    values = np.linalg.eigvalsh(covariance)[::-1]
    aic, bic = [], []
    for k in RANKS:
        noise = values[k:].mean()
        log_det = np.log(values[:k]).sum() + (D - k) * np.log(noise)
        loss = N * (log_det + D * (1 + np.log(2 * np.pi)))
        free = D * k - k * (k - 1) / 2 + 1 + D
        aic.append(loss + 2 * free)
        bic.append(loss + np.log(N) * free)
    return {"AIC": int(np.argmin(aic)), "BIC": int(np.argmin(bic))}


def rank_choices(x: Array) -> dict[str, int]:
    """Ranks that the bound, AIC and BIC choose."""
    selection = find("density.selection.elbo").load()
    model = selection(n_components=tuple(RANKS)).fit(x)
    return {"ELBO": model.n_components_} | by_likelihood(x)


def regret(chosen: int, x: Array, fresh: Array) -> float:
    """Nats a row that `chosen` loses to the best of the ranks on fresh rows."""
    module = find("density.selection.elbo").module()
    scores = []
    for k in RANKS:
        model = module.fit_pca(x, k, module.Config())
        scores.append(float(model.score_samples(fresh).mean()))
    return max(scores) - scores[chosen]


def mixture_choices(x: Array) -> dict[str, int]:
    """Numbers of components by the bound, AIC and BIC, each from the best of five starts."""
    from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

    shared: dict[str, Any] = {"n_init": 5, "random_state": 0, "max_iter": 300}
    bayes = BayesianGaussianMixture(**PRIOR, **shared)
    selection = find("density.selection.elbo").load()
    chosen = selection(estimator=bayes, n_components=tuple(NUMBERS)).fit(x).n_components_
    fitted = [GaussianMixture(k, **shared).fit(x) for k in NUMBERS]
    by_aic = min(fitted, key=lambda model: float(model.aic(x)))
    by_bic = min(fitted, key=lambda model: float(model.bic(x)))
    return {"ELBO": chosen, "AIC": by_aic.n_components, "BIC": by_bic.n_components}


def one_set(rng: np.random.Generator) -> dict[str, float]:
    """Whether each choice is wrong on a data set of each kind and size; what the ranks lose under t noise."""
    found: dict[str, float] = {}
    for size, rows in zip(("few", "many"), PCA_ROWS):
        x, _ = principal(rows, rng)
        for name, k in rank_choices(x).items():
            found[f"{name}, {size}, rank"] = k != TRUE
    for size, rows in zip(("few", "many"), MIXTURE_ROWS):
        centres = CENTRES[rng.integers(TRUE, size=rows)]
        x = centres + rng.normal(size=(rows, 2))
        for name, k in mixture_choices(x).items():
            found[f"{name}, {size}, number"] = k != TRUE
    x, fresh = principal(PCA_ROWS[1], rng, t_noise=True)
    for name, k in rank_choices(x).items():
        found[f"regret {name}"] = regret(k, x, fresh)
    return found


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Shares of wrong choices over ranks and numbers together, and mean regrets."""
    rng = np.random.default_rng(seed)
    with quietly():  # starts of too many components that did not converge
        sets = [one_set(rng) for _ in range(SETS)]
    gathered = defaultdict(list)
    for found in sets:
        for name, value in found.items():
            kind = name.removesuffix(", rank").removesuffix(", number")
            gathered[kind].append(value)
    return {name: mean(values) for name, values in gathered.items()}
