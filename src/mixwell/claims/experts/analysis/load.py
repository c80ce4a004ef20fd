"""Load: without a balance rule a learnt gate comes to favour the same few experts ever more.

Paper: Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer.
Tried: regression in sixteen equally frequent clusters, top-2 of eight experts without a balance rule; busiest expert's
load over the last 20 training batches against the first 20. Against it: an imbalance that does not grow.
"""

from __future__ import annotations

import statistics
from typing import Any

from mixwell.claims._methods import call
from mixwell.claims._series import by_seed
from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, Clusters, build, fit
from mixwell.core.evidence import Evidence, weigh


def measure(seed: int) -> list[float]:
    """The busiest expert's load over the mean at each step."""
    found: list[float] = []

    def watch(step: int, mixed: Any) -> None:
        load = call("experts.analysis.load", mixed.routing)
        found.append(load["max_over_mean"])

    layer = build(seed, {**TOP2, "balance": {}})
    fit(layer, Clusters(seed), seed, watch=watch)
    return found


def claim(bench: Bench) -> Evidence:
    """Imbalance at the end of training against its start."""
    runs = by_seed(bench, measure)
    last = [statistics.fmean(run[-20:]) for run in runs]
    first = [statistics.fmean(run[:20]) for run in runs]
    return weigh("Without a balance rule the imbalance of experts grows.", "busiest expert's load over the mean load",
                 last, first, lower_is_better=False,
                 note="With clusters this far apart the untrained gate is as uneven as the trained one: the imbalance "
                      "comes from the start and does not feed on itself within 500 steps.")
