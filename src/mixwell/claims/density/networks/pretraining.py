"""Pretraining: with few labels, a predictor on the responsibilities of a mixture beats one on the rows, the more rows.

Paper: On the Provable Advantage of Unsupervised Pretraining.
Tried: eight spherical Gaussians in twenty dimensions, each of one of two classes; 20 labels, 100 to 10,000 rows
without; error on fresh rows above that of the true posterior, ten problems a seed, of logistic regression on
responsibilities against logistic regression on the rows; tables and the true responsibilities beside them.
Against it: no gain at 10,000 rows, or an excess there that is not below that at 100.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims._series import means
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.density._data import quietly
from mixwell.core.registry import find

COMPONENTS, COLUMNS, LABELS, FRESH, PROBLEMS = 8, 20, 20, 4000, 10
UNLABELLED = (100, 300, 1000, 3000, 10_000)
SPREAD = 0.6  # standard deviation of the centres in every column, where groups have 1
Array = np.ndarray

CLAIM = Claim("With few labels, pretraining on unlabelled rows lowers the error, the more of them the lower.",
              "excess error on fresh rows", method="linear, 10000", baseline="rows",
              provided=(Comparison(method="linear, 10000", baseline="linear, 100"),))


class Problem:
    """Centres, their classes, and draws."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.centres = SPREAD * rng.normal(size=(COMPONENTS, COLUMNS))
        self.classes = rng.permutation(np.arange(COMPONENTS) % 2)

    def draw(self, rows: int) -> tuple[Array, Array]:
        """Rows and their classes."""
        z = self.rng.integers(COMPONENTS, size=rows)
        noise = self.rng.normal(size=(rows, COLUMNS))
        return self.centres[z] + noise, self.classes[z]

    def draw_labelled(self) -> tuple[Array, Array]:
        """LABELS rows in which both classes are seen."""
        x, classes = self.draw(LABELS)
        while len(set(classes)) < 2:
            x, classes = self.draw(LABELS)
        return x, classes

    def posterior(self, x: Array) -> Array:
        """True responsibilities."""
        half_squares = 0.5 * (self.centres**2).sum(1)
        log = x @ self.centres.T - half_squares
        weight = np.exp(log - log.max(1, keepdims=True))
        return weight / weight.sum(1, keepdims=True)

    def best(self, x: Array) -> Array:
        """The most probable class."""
        of_second = self.posterior(x) @ self.classes
        return (of_second > 0.5).astype(int)


def excesses(problem: Problem, seed: int) -> dict[str, float]:
    """Excess error of every predictor."""
    from sklearn.linear_model import LogisticRegression

    few, labels = problem.draw_labelled()
    more, _ = problem.draw(UNLABELLED[-1])
    fresh, truth = problem.draw(FRESH)
    least = (problem.best(fresh) != truth).mean()

    def excess(guess: Array) -> float:
        return float((guess != truth).mean() - least)

    raw = LogisticRegression().fit(few, labels)
    classifier = LogisticRegression().fit(problem.posterior(few), labels)
    found = {"rows": excess(raw.predict(fresh)),
             "true responsibilities": excess(classifier.predict(problem.posterior(fresh)))}
    kinds = [("linear", rows) for rows in UNLABELLED] + [("table", UNLABELLED[-1])]
    for kind, rows in kinds:
        model = pretrained(kind, seed).fit(few, labels, X_unlabelled=more[:rows])
        found[f"{kind}, {rows}"] = excess(model.predict(fresh))
    return found


def pretrained(kind: str, seed: int) -> Any:
    """A predictor of this kind on the responsibilities of a spherical mixture."""
    mixture = find("density.mixtures.gaussian").load()
    latent = mixture(COMPONENTS, covariance_type="spherical", n_init=5, random_state=seed, max_iter=300)
    return find("density.networks.pretraining").load()(latent=latent, predictor=kind)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Excess error of every predictor, mean of the problems."""
    rng = np.random.default_rng(seed)
    with quietly():  # 100 rows do not always converge
        return means([excesses(Problem(rng), seed) for _ in range(PROBLEMS)])
