"""Mixed mixture of experts: random effects in gates and experts describe groups that plain experts cannot.

Paper: Mixture of experts models for multilevel data: modelling framework and approximation theory.
Tried: 30 groups of ten rows on a bent line whose level and slope both move with the group; nats a row on 15 fresh
groups, experts and gates with random effects against the better, with each seed, of experts without effects and of one
expert with them. Against it: a loss that is no smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.density._data import quietly
from mixwell.core.registry import find

GROUPS, SIZE, HELD_OUT = 30, 10, 15
SIDES: dict[str, dict[str, Any]] = {"method": {}, "no effects": {"effects": "none", "n_nodes": 1},
                                    "one expert": {"n_experts": 1}}

CLAIM = Claim("Mixed mixtures of experts capture random intercepts and slopes that neither plain experts nor a linear "
              "mixed model do.", "held-out nats a row of new groups")


def simulate(rng: np.random.Generator, groups: int) -> tuple[Any, Any, Any]:
    """A bent line whose level and slope both move with the group, nonlinearly."""
    label = np.repeat(np.arange(groups), SIZE)
    u = rng.normal(size=groups)[label]
    x = rng.normal(size=(groups * SIZE, 1))
    bend = np.abs(x[:, 0]) * (1 + 0.5 * u)
    mean = np.tanh(2 * u) + bend
    return x, mean + 0.3 * rng.normal(size=len(u)), label


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Held-out nats a row of mixed experts, of experts without effects, and of one expert with them."""
    rng = np.random.default_rng(seed)
    train, test = simulate(rng, GROUPS), simulate(rng, HELD_OUT)
    estimator = find("density.regression.mixed").load()
    common = {"n_nodes": 9, "random_state": seed, "tol": 1e-4}
    found = {}
    for name, options in SIDES.items():
        model = estimator(**(common | options))
        with quietly():
            model.fit(*train)
        loss = -float(model.log_likelihood(*test).sum())
        found[name] = loss / len(test[1])
    found["baseline"] = min(found["no effects"], found["one expert"])
    return found
