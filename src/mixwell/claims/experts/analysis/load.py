"""Load: without a balance rule a learnt gate comes to favour the same few experts ever more.

Paper: Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer.
Tried: regression in sixteen equally frequent clusters, noisy top-2 of eight experts without a balance rule, the gate at
zero to begin with as in the paper, so that noise alone chooses; busiest expert's load over the last 20 training batches
against the first 20. Against it: an imbalance that does not grow.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from mixwell.claims._methods import call
from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.experts._synthetic import Clusters, build, fit

NOISY = {"router": {"method": "noisy_top_k", "k": 2, "load": 0.0}, "balance": {}}


def measure(seed: int) -> list[float]:
    """The busiest expert's load over the mean at each step."""
    found: list[float] = []

    def watch(step: int, mixed: Any) -> None:
        load = call("experts.analysis.load", mixed.routing)
        found.append(load["max_over_mean"])

    draw = Clusters(seed)
    layer = build(seed, NOISY)
    torch.nn.init.zeros_(layer.router.weight)
    fit(layer, draw, seed, watch=watch)
    return found


CLAIM = Claim("Without a balance rule the imbalance of experts grows.", "busiest expert's load over the mean load",
              lower_is_better=False)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Imbalance at the end of training against its start."""
    run = measure(seed)
    first = statistics.fmean(run[:20])
    last = statistics.fmean(run[-20:])
    return {"method": last, "baseline": first}
