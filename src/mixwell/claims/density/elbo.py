"""ELBO selection: the largest bound finds the rank of a PCA and the K of a mixture as rows grow.

Paper: Consistency of ELBO maximization for model selection.
Tried: probabilistic PCA of rank 3 in ten dimensions, and mixtures of three overlapping Gaussians in the plane, 12 data
sets of each a seed; share of wrong choices at the larger number of rows against AIC's on the same data, and BIC's.
Under noise with Student's t of 4 degrees, nats a row that the chosen rank loses to the best rank on fresh rows.
Against it: AIC is wrong as rarely, or the share of wrong choices does not fall with the rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

NOTE = "With few rows the bound chooses too few, and more often so than BIC and AIC."
Array = np.ndarray
SETS, TRUE, COLUMNS = 12, 3, 10
PCA_ROWS, MIXTURE_ROWS = (40, 400), (60, 600)
RANKS, NUMBERS = range(8), range(1, 7)
CENTRES = np.array([[-2.5, 0.0], [0.0, 2.5], [2.5, 0.0]])


def principal(rows: int, rng: np.random.Generator, t_noise: bool = False) -> tuple[Array, Array]:
    """Rows around a subspace of three dimensions, and 4000 fresh ones."""
    axes = np.linalg.qr(rng.normal(size=(COLUMNS, TRUE)))[0] * np.array([2.0, 1.5, 1.2])
    total = rows + 4000
    noise = rng.standard_t(4, (total, COLUMNS)) / np.sqrt(2) if t_noise else rng.normal(size=(total, COLUMNS))
    x = rng.normal(size=(total, TRUE)) @ axes.T + noise
    return x[:rows], x[rows:]


def by_likelihood(x: Array) -> dict[str, int]:
    """Ranks that AIC and BIC choose, from the closed form of the maximum likelihood."""
    N, D = x.shape
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    scores: dict[str, list[float]] = {"AIC": [], "BIC": []}
    for k in RANKS:
        noise = values[k:].mean()
        loss = N * (np.log(values[:k]).sum() + (D - k) * np.log(noise) + D * (1 + np.log(2 * np.pi)))
        free = D * k - k * (k - 1) / 2 + 1 + D
        scores["AIC"].append(loss + 2 * free)
        scores["BIC"].append(loss + np.log(N) * free)
    return {name: int(np.argmin(score)) for name, score in scores.items()}


def regret(model: Any, chosen: int, x: Array, fresh: Array, config: Any) -> float:
    """Nats a row that `chosen` loses to the best of the ranks on fresh rows."""
    scores = [float(model.fit_pca(x, k, config).score_samples(fresh).mean()) for k in RANKS]
    return max(scores) - scores[chosen]


def mixture_choices(x: Array, selection: Any) -> dict[str, int]:
    """Numbers of components by the bound, AIC and BIC, each from the best of five starts."""
    from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

    prior: dict[str, Any] = {"weight_concentration_prior_type": "dirichlet_distribution",
                             "weight_concentration_prior": 1.0}
    shared: dict[str, Any] = {"n_init": 5, "random_state": 0, "max_iter": 300}
    bayes = BayesianGaussianMixture(**prior, **shared)
    fitted = {k: GaussianMixture(k, **shared).fit(x) for k in NUMBERS}
    return {"ELBO": selection(estimator=bayes, n_components=tuple(NUMBERS)).fit(x).n_components_,
            "AIC": min(NUMBERS, key=lambda k: float(fitted[k].aic(x))),
            "BIC": min(NUMBERS, key=lambda k: float(fitted[k].bic(x)))}


def claim(bench: Bench) -> Evidence:
    """Share of wrong numbers at the larger size; what t noise costs."""
    import warnings

    entry = find("density.selection.elbo")
    module, selection = entry.module(), entry.load()
    found: dict[str, list[float]] = {}
    for seed in bench.seeds:
        rng = np.random.default_rng(seed)
        wrong: dict[str, list[float]] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # starts of too many components that did not converge
            for _ in range(SETS):
                for size, rows in zip(("few", "many"), PCA_ROWS):
                    x, _ = principal(rows, rng)
                    chosen = {"ELBO": selection(n_components=tuple(RANKS)).fit(x).n_components_} | by_likelihood(x)
                    for name, k in chosen.items():
                        wrong.setdefault(f"{name}, {size}", []).append(k != TRUE)
                for size, rows in zip(("few", "many"), MIXTURE_ROWS):
                    x = CENTRES[rng.integers(TRUE, size=rows)] + rng.normal(size=(rows, 2))
                    for name, k in mixture_choices(x, selection).items():
                        wrong.setdefault(f"{name}, {size}", []).append(k != TRUE)
                x, fresh = principal(PCA_ROWS[1], rng, t_noise=True)
                chosen = {"ELBO": selection(n_components=tuple(RANKS)).fit(x).n_components_} | by_likelihood(x)
                for name, k in chosen.items():
                    wrong.setdefault(f"regret {name}", []).append(regret(module, k, x, fresh, module.Config()))
        for name, values in wrong.items():
            found.setdefault(name, []).append(float(np.mean(values)))
    evidence = weigh("The largest ELBO finds the rank of a PCA and the number of components of a mixture.",
                     "share of wrong choices", found["ELBO, many"], found["AIC, many"], note=NOTE)
    return replace(evidence, values=evidence.values | found)
