"""Mixed mixture of experts: random effects in gates and experts describe groups that plain experts cannot."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from mixwell.core.evidence import Evidence, weigh
from mixwell.core.registry import find

GROUPS, SIZE, HELD_OUT = 30, 10, 15


def simulate(rng: np.random.Generator, groups: int) -> tuple[Any, Any, Any]:
    """A bent line whose level and slope both move with the group, nonlinearly."""
    label = np.repeat(np.arange(groups), SIZE)
    u, x = rng.normal(size=groups)[label], rng.normal(size=(groups * SIZE, 1))
    mean = np.tanh(2 * u) + np.abs(x[:, 0]) * (1 + 0.5 * u)
    return x, mean + 0.3 * rng.normal(size=len(u)), label


def claim(bench: Any) -> Evidence:
    """Loss of held-out groups, against the better of experts without effects and one expert with them."""
    mixed, other = [], []
    for seed in bench.seeds:
        rng = np.random.default_rng(seed)
        train, test = simulate(rng, GROUPS), simulate(rng, HELD_OUT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = []
            for options in ({}, {"effects": "none", "n_nodes": 1}, {"n_experts": 1}):
                model = find("density.regression.mixed").load()(**({"n_nodes": 9, "random_state": seed, "tol": 1e-4}
                                                                   | options)).fit(*train)
                losses.append(-float(model.log_likelihood(*test).sum()) / len(test[1]))
        mixed.append(losses[0])
        other.append(min(losses[1:]))
    return weigh("Mixed mixtures of experts capture random intercepts and slopes that neither plain experts nor a "
                 "linear mixed model do", "held-out nats a row of new groups", mixed, other,
                 note=f"{GROUPS} groups of {SIZE}; baseline: the better of no effects, and one expert with effects")
