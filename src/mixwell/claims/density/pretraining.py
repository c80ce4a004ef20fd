"""Pretraining: with few labels, a predictor on the responsibilities of a mixture beats one on the rows, the more rows.

Paper: On the Provable Advantage of Unsupervised Pretraining.
Tried: eight spherical Gaussians in twenty dimensions, each of one of two classes; 20 labels, 100 to 10,000 rows
without; error on fresh rows above that of the true posterior, ten problems a seed, of logistic regression on
responsibilities against logistic regression on the rows; tables and the true responsibilities beside them.
Against it: no gain at 10,000 rows, or an excess there that is not below that at 100.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

COMPONENTS, COLUMNS, LABELS, FRESH, PROBLEMS = 8, 20, 20, 4000, 10
UNLABELLED = (100, 300, 1000, 3000, 10_000)
SPREAD = 0.6  # standard deviation of the centres in every column, where groups have 1
Array = np.ndarray


class Problem:
    """Centres, their classes, and draws."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.centres = SPREAD * rng.normal(size=(COMPONENTS, COLUMNS))
        self.classes = rng.permutation(np.arange(COMPONENTS) % 2)

    def draw(self, rows: int) -> tuple[Array, Array]:
        """Rows and their classes."""
        z = self.rng.integers(COMPONENTS, size=rows)
        return self.centres[z] + self.rng.normal(size=(rows, COLUMNS)), self.classes[z]

    def posterior(self, x: Array) -> Array:
        """True responsibilities."""
        log = x @ self.centres.T - 0.5 * (self.centres**2).sum(1)
        weight = np.exp(log - log.max(1, keepdims=True))
        return weight / weight.sum(1, keepdims=True)

    def best(self, x: Array) -> Array:
        """The most probable class."""
        return (self.posterior(x) @ self.classes > 0.5).astype(int)


def excesses(problem: Problem, seed: int) -> dict[str, float]:
    """Excess error of every predictor."""
    from sklearn.linear_model import LogisticRegression

    predictor, mixture = find("density.networks.pretraining").load(), find("density.mixtures.gaussian").load()
    few, labels = problem.draw(LABELS)
    while len(set(labels)) < 2:
        few, labels = problem.draw(LABELS)
    more, _ = problem.draw(UNLABELLED[-1])
    fresh, truth = problem.draw(FRESH)
    least = (problem.best(fresh) != truth).mean()
    raw = LogisticRegression().fit(few, labels)
    told = LogisticRegression().fit(problem.posterior(few), labels)
    found = {"rows": float((raw.predict(fresh) != truth).mean() - least),
             "true responsibilities": float((told.predict(problem.posterior(fresh)) != truth).mean() - least)}
    latent = mixture(COMPONENTS, covariance_type="spherical", n_init=5, random_state=seed, max_iter=300)
    for kind, rows in [("linear", rows) for rows in UNLABELLED] + [("table", UNLABELLED[-1])]:
        model = predictor(latent=latent, predictor=kind).fit(few, labels, X_unlabelled=more[:rows])
        found[f"{kind}, {rows}"] = float((model.predict(fresh) != truth).mean() - least)
    return found


def claim(bench: Bench) -> Evidence:
    """Excess error at the most unlabelled rows; how it falls with them."""
    import warnings

    found: dict[str, list[float]] = {}
    for seed in bench.seeds:
        rng = np.random.default_rng(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 100 rows do not always converge
            runs = [excesses(Problem(rng), seed) for _ in range(PROBLEMS)]
        for name in runs[0]:
            found.setdefault(name, []).append(float(np.mean([run[name] for run in runs])))
    least, most = found[f"linear, {UNLABELLED[0]}"], found[f"linear, {UNLABELLED[-1]}"]
    evidence = weigh("With few labels, pretraining on unlabelled rows lowers the error, the more of them the lower.",
                     "excess error on fresh rows", most, found.pop("rows"))
    evidence = replace(evidence, values=evidence.values | found)
    if any(a >= b for a, b in zip(most, least)):
        evidence = replace(evidence, outcome="did not hold", note="The excess does not fall with unlabelled rows.")
    return evidence
