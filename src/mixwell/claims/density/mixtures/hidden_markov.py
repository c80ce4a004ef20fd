"""Rows that come in an order are described better by a hidden Markov model than by a mixture of the same components.

Paper: Rabiner (1989), A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition.
Tried: three states that stay with probability 0.9, Gaussian columns 1.5 deviations apart; 400 rows to fit and as many
held out, three components and full covariances for both sides; held-out log probability a row. Against it: no higher.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import quietly, starts
from mixwell.density.mixtures.gaussian import GaussianMixture
from mixwell.density.mixtures.hidden_markov import HiddenMarkovModel

STATES, ROWS, STAYS, APART = 3, 400, 0.9, 1.5

CLAIM = Claim("A hidden Markov model describes ordered rows better than a mixture.",
              "held-out log probability, nats a row", lower_is_better=False)


def draw(rng: np.random.Generator, rows: int) -> np.ndarray:
    """One sequence: [rows, 2]."""
    moves_N = rng.random(rows) > STAYS
    steps_N = rng.integers(1, STATES, rows)
    state_N = np.cumsum(moves_N * steps_N) % STATES
    angle_N = 2 * np.pi * state_N / STATES
    centre_N2 = APART * np.stack([np.cos(angle_N), np.sin(angle_N)], 1)
    return centre_N2 + rng.standard_normal((rows, 2))


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out log probabilities of both."""
    rng = np.random.default_rng(seed)
    x_N2, held_N2 = draw(rng, ROWS), draw(rng, ROWS)
    options = starts(seed)
    with quietly():
        chain = HiddenMarkovModel(components=GaussianMixture(STATES, **options)).fit(x_N2)
        plain = GaussianMixture(STATES, **options).fit(x_N2)
    return {"method": chain.score(held_N2) / ROWS, "baseline": plain.score(held_N2)}
