"""Load: without a balance rule a learnt gate comes to favour the same few experts ever more.

Paper: Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer.
Tried: regression in sixteen equally frequent clusters, top-2 of eight experts without a balance rule; busiest expert's
load over the last 20 training batches against the first 20. Against it: an imbalance that does not grow.
"""

from __future__ import annotations

import statistics
from typing import Any

from mixwell.claims.bench import Bench
from mixwell.claims.experts._synthetic import TOP2, Clusters, build, fit
from mixwell.core import registry
from mixwell.core.evidence import Evidence, weigh
from mixwell.core.routing import Context


def measure(seed: int) -> list[float]:
    """The busiest expert's load over the mean at each step."""
    load, found = registry.find("experts.analysis.load"), []

    def watch(step: int, mixed: Any) -> None:
        found.append(load.load()(mixed.routing, load.module().Config(), Context())["max_over_mean"])

    fit(build(seed, {**TOP2, "balance": {}}), Clusters(seed), seed, watch=watch)
    return found


def claim(bench: Bench) -> Evidence:
    """Imbalance at the end of training against its start."""
    runs = [measure(seed) for seed in bench.seeds]
    return weigh("Without a balance rule the imbalance of experts grows.", "busiest expert's load over the mean load",
                 [statistics.fmean(run[-20:]) for run in runs], [statistics.fmean(run[:20]) for run in runs],
                 lower_is_better=False,
                 note="With clusters this far apart the untrained gate is as uneven as the trained one: the imbalance "
                      "comes from the start and does not feed on itself within 500 steps.")
