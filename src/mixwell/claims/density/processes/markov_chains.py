"""Mixtures of Markov chains: a spectral start finds the chains that EM from random starts misses.

Paper: Learning Mixtures of Markov Chains and MDPs.
Tried: 300 walks of 60 steps from three chains on eight states, 60 % of whose rows are alike; share of walks in the
right cluster under the best matching, mean of three data sets, EM from the spectral start against the likeliest of as
many random starts of EM as fit into the same CPU time, one at least. Beside it: how many those are. Against it: a share
that is no higher.
"""

from __future__ import annotations

from time import process_time
from typing import Any

import numpy as np

from mixwell.claims._judging import matched_accuracy
from mixwell.claims._series import mean
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.core.registry import find

STATES, WALKS, LENGTH, CHAINS, REPEATS, SHARED = 8, 300, 60, 3, 3, 0.6

CLAIM = Claim("Subspace estimation and spectral clustering before EM cluster trajectories better than EM from random "
              "starts.", "share of walks clustered rightly", quantity="right", lower_is_better=False)


def simulate(rng: np.random.Generator) -> tuple[Any, Any]:
    """Walks (N, T) and their chains (N,)."""
    own = rng.dirichlet(np.ones(STATES), (CHAINS, STATES))
    alike = rng.dirichlet(np.ones(STATES), STATES)
    rows = (1 - SHARED) * own + SHARED * alike
    edges = rows.cumsum(-1)
    label = rng.integers(0, CHAINS, WALKS)
    state = rng.integers(0, STATES, WALKS)
    walk = [state]
    for _ in range(1, LENGTH):
        draw = rng.random((WALKS, 1))
        passed = draw > edges[label, state]
        state = passed.sum(1)
        np.minimum(state, STATES - 1, out=state)
        walk.append(state)
    return np.stack(walk, 1), label


def fitted(path: Any, init: str, start: int) -> tuple[Any, float]:
    """A model from this start, and the seconds of CPU time it took."""
    mixture = find("density.processes.markov_chains").load()
    began = process_time()
    model = mixture(n_components=CHAINS, init=init, random_state=start).fit(path)
    return model, process_time() - began


def restarted(path: Any, budget_s: float, seed: int) -> tuple[Any, int]:
    """The likeliest of the random starts that the budget pays for, and their number."""
    found: list[Any] = []
    spent = 0.0
    while spent < budget_s:
        model, took = fitted(path, "random", 1000 * seed + len(found))
        found.append(model)
        spent += took
    return max(found, key=lambda model: model.lower_bounds_[-1]), len(found)


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Means of the data sets, from spectral and from random starts of equal CPU time."""
    rng = np.random.default_rng(seed)
    spectral, random, starts = [], [], []
    for _ in range(REPEATS):
        path, label = simulate(rng)
        ours, budget_s = fitted(path, "spectral", seed)
        theirs, number = restarted(path, budget_s, seed)
        spectral.append(matched_accuracy(label, ours.predict(path)))
        random.append(matched_accuracy(label, theirs.predict(path)))
        starts.append(number)
    return {"method": {"right": mean(spectral)}, "baseline": {"right": mean(random), "starts": mean(starts)}}
